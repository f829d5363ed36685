import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.calibration import Calibration, CalibrationError, Calibrator, LevelStatistics, calibration_samples
from sak.features import FeatureMaps

KEYS = tuple(f"n{number:05d}" for number in range(300))


def make_features(batch=12, width=6, grid=(3, 2), seed=0) -> FeatureMaps:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    maps = [torch.randn(batch, width, *grid, generator=generator) for _ in range(2)]
    return FeatureMaps((2, 4), tuple(torch.einsum("bchw,cd->bdhw", each, mixing) + 5 for each in maps))


def calibrate(features, pca=None, sizes=None) -> Calibration:
    calibrator, start = Calibrator(features.levels, pca), 0
    for size in sizes or [features.maps[0].shape[0]]:
        calibrator.update(FeatureMaps(features.levels, tuple(each[start : start + size] for each in features)))
        start += size
    return calibrator.finish()


def tokens_of(map_) -> np.ndarray:
    return map_.permute(0, 2, 3, 1).reshape(-1, map_.shape[1]).double().numpy()


def test_the_samples_are_a_function_of_keys_and_seed():
    chosen = calibration_samples(KEYS, 20, 0)
    assert chosen == calibration_samples(iter(KEYS), 20, 0)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == 20
    assert chosen != calibration_samples(KEYS, 20, 1)
    assert set(chosen) < set(calibration_samples(KEYS, 40, 0))


def test_the_samples_are_pinned():
    """Another choice would be other statistics under the same key."""
    assert calibration_samples(KEYS, 5, 0) == (38, 68, 76, 89, 272)


@given(st.permutations(KEYS[:60]), st.integers(1, 60))
def test_the_order_of_the_index_does_not_matter(keys, count):
    wanted = {KEYS[position] for position in calibration_samples(KEYS[:60], count, 3)}
    assert {keys[position] for position in calibration_samples(keys, count, 3)} == wanted


def test_fewer_samples_than_wanted_are_all_taken():
    assert calibration_samples(KEYS[:7], 100, 0) == tuple(range(7))
    assert calibration_samples([], 100, 0) == ()


@pytest.mark.parametrize("pca", [None, 3])
def test_statistics_are_those_of_all_tokens(pca):
    features = make_features()
    calibration = calibrate(features, pca)
    assert calibration.samples == 12
    for level in features.levels:
        tokens = tokens_of(features[level])
        statistics = calibration.levels[level]
        np.testing.assert_allclose(statistics.mean, tokens.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.std, tokens.std(0), rtol=1e-10)


def test_components_are_the_leading_eigenvectors_of_the_correlations():
    features = make_features(40)
    statistics = calibrate(features, 4).levels[2]
    variance, vectors = np.linalg.eigh(np.corrcoef(tokens_of(features[2]).T))
    np.testing.assert_allclose(statistics.variance, variance[::-1][:4], rtol=1e-8)
    overlap = np.abs((statistics.basis.numpy() * vectors[:, ::-1][:, :4]).sum(0))
    np.testing.assert_allclose(overlap, 1, rtol=1e-8)
    np.testing.assert_allclose(statistics.basis.T @ statistics.basis, np.eye(4), atol=1e-10)


def test_the_largest_entry_of_each_component_is_positive():
    basis = calibrate(make_features(), 6).levels[2].basis
    assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())


@settings(max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.sampled_from([None, 2]))
def test_batches_do_not_matter_to_the_last_bit(sizes, pca):
    features = make_features()
    kept = []
    for size in sizes:
        kept.append(min(size, 12 - sum(kept)))
    kept = [size for size in [*kept, 12 - sum(kept)] if size]
    assert calibrate(features, pca, kept).digest == calibrate(features, pca, [1] * 12).digest


def test_huge_means_cost_no_digits():
    generator = torch.Generator().manual_seed(0)
    map_ = torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) + 1e7
    statistics = calibrate(FeatureMaps((1,), (map_,))).levels[1]
    np.testing.assert_allclose(statistics.std, tokens_of(map_).std(0), rtol=1e-9)


def test_channels_that_never_move_are_divided_by_something():
    constant = torch.full((2, 3, 2, 2), 7.0)
    statistics = calibrate(FeatureMaps((1,), (constant,))).levels[1]
    assert bool((statistics.scale > 0).all())
    nothing = LevelStatistics(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(nothing.scale, torch.ones(3, dtype=torch.float64))


def test_components_of_channels_that_never_move_are_finite():
    map_ = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    map_[:, 2] = 3
    statistics = calibrate(FeatureMaps((1,), (map_,)), 5).levels[1]
    assert statistics.basis.isfinite().all()
    assert bool((statistics.variance >= 0).all())


@pytest.mark.parametrize("pca", [None, 3])
def test_a_calibration_survives_its_bytes(pca):
    calibration = calibrate(make_features(), pca)
    data = calibration.to_bytes()
    again = Calibration.from_bytes(data, digest=calibration.digest)
    assert (again.to_bytes(), again.digest, again.samples) == (data, calibration.digest, 12)
    assert again.levels.keys() == calibration.levels.keys()
    for level, statistics in calibration.levels.items():
        assert torch.equal(again.levels[level].mean, statistics.mean)
        assert (again.levels[level].basis is None) is (pca is None)


def test_any_changed_byte_is_another_digest():
    calibration = calibrate(make_features())
    data = bytearray(calibration.to_bytes())
    for place in range(0, len(data), 37):
        data[place] ^= 1
        with pytest.raises(CalibrationError, match="but blocks were made with"):
            Calibration.from_bytes(bytes(data), digest=calibration.digest)
        data[place] ^= 1


@pytest.mark.parametrize("data", [b"", b"not a file", bytes(100)])
def test_what_is_no_calibration_is_refused(data):
    with pytest.raises(CalibrationError, match=r"cal\.safetensors: not a calibration file, or damaged"):
        Calibration.from_bytes(data, source="cal.safetensors")


def test_files_of_other_tensors_are_refused():
    from safetensors.torch import save

    for tensors in ({"a": torch.zeros(1)}, {"samples": torch.tensor(3), "l2.mean": torch.zeros(3)}):
        with pytest.raises(CalibrationError, match="not a calibration file"):
            Calibration.from_bytes(save(tensors))


def test_no_sample_makes_no_statistics():
    with pytest.raises(CalibrationError, match="saw no sample"):
        Calibrator((1,)).finish()


def test_features_that_are_not_finite_stop_with_teacher_level_and_sample():
    features = make_features()
    features.maps[1][3, 2, 1, 1] = float("nan")
    calibrator = Calibrator((2, 4), teacher="dino")
    with pytest.raises(CalibrationError, match="teacher dino, level 4, sample 'n00003': features are not finite"):
        calibrator.update(features, KEYS[:12])
    with pytest.raises(CalibrationError, match="level 4, number 3 of the batch"):
        Calibrator((2, 4)).update(features)
