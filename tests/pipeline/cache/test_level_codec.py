import math
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.calibration import Calibrator, LevelStatistics
from pipeline.cache.level_codec import FeatureError, LevelCodec
from pipeline.cache.quantizers import QUANTIZERS, gaussian_levels
from pipeline.cache.spec import EncodingSpec
from sak.features import FeatureMaps

KINDS = tuple(QUANTIZERS)


def make_maps(batch=3, width=48, grid=(3, 4), seed=0) -> torch.Tensor:
    """Correlated channels of different means and sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(batch, width, *grid, generator=generator)
    mean, size = torch.linspace(-3, 3, width), torch.logspace(-1, 1, width)
    return torch.einsum("bchw,cd->bdhw", noise, mixing) / width**0.5 * size[:, None, None] + mean[:, None, None]


def statistics_of(maps, pca=None) -> LevelStatistics:
    calibrator = Calibrator((5,), pca)
    calibrator.update(FeatureMaps((5,), (maps,)))
    return calibrator.finish().levels[5]


def make_codec(kind, pca=None, width=48, grid=(3, 4), statistics=None) -> LevelCodec:
    if statistics is None:
        statistics = statistics_of(make_maps(40, width, grid, seed=7), pca)
    encoding = EncodingSpec(kind=kind, pca=pca)
    return LevelCodec(encoding, teacher="sam", level=5, width=width, grid=grid, statistics=statistics)


def identity_statistics(width) -> LevelStatistics:
    return LevelStatistics(torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64))


def relative_error(maps, decoded, statistics) -> float:
    scale = statistics.scale.float()[:, None, None]
    standard = (maps - statistics.mean.float()[:, None, None]) / scale
    return float(((decoded - maps) / scale).norm() / standard.norm())


@pytest.mark.parametrize("pca", [None, 7, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_what_the_layout_says(kind, pca):
    codec = make_codec(kind, pca)
    encoded = codec.encode(make_maps(2))
    assert list(encoded) == [array.name for array in codec.arrays]
    for array in codec.arrays:
        stored = encoded[array.name].numpy()
        assert stored.dtype == np.dtype(array.dtype)
        assert stored.shape == (2, *array.shape)
        assert stored.flags.c_contiguous


@given(st.sampled_from(KINDS), st.integers(1, 50), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_width_and_grid_goes_there_and_back(kind, width, height, columns, data):
    pca = data.draw(st.none() | st.integers(1, width))
    maps = make_maps(4, width, (height, columns), seed=1)
    codec = make_codec(kind, pca, width, (height, columns), statistics_of(maps, pca))
    decoded = codec.decode(codec.encode(maps))
    assert decoded.shape == maps.shape
    assert decoded.isfinite().all()
    assert [array.shape for array in codec.arrays] == [tuple(each.shape[1:]) for each in codec.encode(maps).values()]


BOUNDS = {"float16": 0.002, "bfloat16": 0.02, "int8": 0.01, "int4": 0.1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_stays_within_the_stated_bound(kind):
    maps = make_maps(8, seed=3)
    codec = make_codec(kind)
    statistics = statistics_of(make_maps(40, seed=7))
    assert relative_error(maps, codec.decode(codec.encode(maps)), statistics) < BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_all_components_lose_no_more_than_the_kind_itself(kind):
    maps = make_maps(8, seed=3)
    codec = make_codec(kind, pca=48)
    statistics = statistics_of(make_maps(40, seed=7))
    assert relative_error(maps, codec.decode(codec.encode(maps)), statistics) < 1.2 * BOUNDS[kind]


def test_features_of_low_rank_survive_as_many_components():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 48, generator=generator)
    maps = torch.einsum("bkhw,kd->bdhw", torch.randn(6, 5, 3, 4, generator=generator), mixing) + 2
    statistics = statistics_of(maps, 5)
    codec = make_codec("int8", 5, statistics=statistics)
    assert relative_error(maps, codec.decode(codec.encode(maps)), statistics) < 0.01
    assert float(statistics.variance.sum()) == pytest.approx(48, abs=5e-5)


def test_fewer_components_keep_less():
    maps = make_maps(40, seed=7)
    errors = []
    for pca in (6, 12, 24, 48):
        codec = make_codec("float16", pca)
        errors.append(relative_error(maps, codec.decode(codec.encode(maps)), statistics_of(maps)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(math.sqrt(1 - float(statistics_of(maps, 6).variance.sum()) / 48), rel=0.02)


@given(st.integers(0, 1000), st.floats(-6, 4))
def test_int8_misses_no_value_by_more_than_half_its_step(seed, magnitude):
    values = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(seed)) * 10**magnitude
    values[0, 0] = 0
    values[0, 1, 3] *= 100
    quantizer = QUANTIZERS["int8"](48)
    arrays = quantizer.encode(values)
    codes = arrays["values"].long() + 127
    steps = torch.cat([quantizer.levels.diff(), quantizer.levels.diff()[-1:]])
    widest = torch.maximum(steps[codes], steps[(codes - 1).clamp(min=0)])
    error = (quantizer.decode(arrays) - values).abs()
    assert bool((error <= 0.5001 * widest * arrays["scales"].float()[..., None] + 1e-30).all())


@given(st.integers(0, 1000), st.sampled_from([8, 32, 48, 384]), st.floats(-3, 3))
def test_int4_keeps_nine_tenths_of_any_token(seed, width, magnitude):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 6, width, generator=generator) * 10**magnitude
    values[0, 0, 0] *= 100  # one huge channel
    values[0, 1] = values[0, 1, 0]  # all channels alike
    quantizer = QUANTIZERS["int4"](width)
    decoded = quantizer.decode(quantizer.encode(values))
    assert bool(((decoded - values).norm(dim=-1) <= 0.2 * values.norm(dim=-1)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_alike_in_every_channel_is_kept(kind):
    codec = make_codec(kind, statistics=identity_statistics(48))
    for value in (0.0, 1.0, -1000.0):
        maps = torch.full((1, 48, 3, 4), value)
        torch.testing.assert_close(codec.decode(codec.encode(maps)), maps, rtol=0.1, atol=1e-6 + 0.2 * abs(value))


@pytest.mark.parametrize("pca", [None, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_absent_samples_decode_to_nan(kind, pca):
    codec = make_codec(kind, pca)
    absent = {a.name: torch.from_numpy(np.full((1, *a.shape), a.fill, a.dtype)) for a in codec.arrays}
    assert codec.decode(absent).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_encoded_alike_in_any_batch(kind):
    codec, maps = make_codec(kind), make_maps(5)
    together = codec.encode(maps)
    alone = [codec.encode(maps[number : number + 1]) for number in range(5)]
    for name, array in together.items():
        assert torch.equal(array.view(torch.uint8), torch.cat([each[name] for each in alone]).view(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_the_same_each_time_and_in_every_mode(kind):
    codec, maps = make_codec(kind, 6), make_maps(2)
    stored = codec.encode(maps)
    first = codec.decode(stored)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(stored), first)
        again = codec.encode(maps)
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    assert codec.decode(stored, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_one_graph(kind):
    codec = make_codec(kind, 6 if kind == "int4" else None)
    stored = codec.encode(make_maps(2))
    decode = torch.compile(codec.decode, fullgraph=True, backend="eager")
    assert torch.equal(decode(stored), codec.decode(stored))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_float_dtype_are_taken(dtype):
    maps = make_maps(2).to(dtype)
    codec = make_codec("int8")
    a, b = codec.encode(maps), codec.encode(maps.float())
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_not_finite_stop_with_teacher_level_and_sample(kind, bad):
    maps = make_maps(3)
    maps[1, 4, 2, 2] = bad
    with pytest.raises(FeatureError, match=r"teacher sam, level 5, sample 'b': features are not finite"):
        make_codec(kind).encode(maps, ["a", "b", "c"])
    with pytest.raises(FeatureError, match="number 1 of the batch"):
        make_codec(kind).encode(maps)


def test_what_float16_cannot_hold_stops_with_teacher_level_and_sample():
    maps = make_maps(3)
    maps[2, 0, 0, 0] = -70000
    with pytest.raises(
        FeatureError, match=r"teacher sam, level 5, sample 'c': features up to 70000 do not fit float16"
    ):
        make_codec("float16").encode(maps, ["a", "b", "c"])
    assert make_codec("bfloat16").decode(make_codec("bfloat16").encode(maps))[2, 0, 0, 0] == pytest.approx(
        -70000, rel=0.004
    )


def test_the_largest_float16_fits():
    maps = torch.full((1, 48, 3, 4), 65504.0)
    assert torch.equal(make_codec("float16").decode(make_codec("float16").encode(maps)), maps)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_scales_beyond_float16_stop(kind):
    maps = torch.full((1, 48, 3, 4), 1e13)
    with pytest.raises(FeatureError, match=f"do not fit {kind}"):
        make_codec(kind, statistics=identity_statistics(48)).encode(maps)


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"teacher sam, level 5: maps must be \(B, 48, 3, 4\), got \(2, 48, 4, 3\)"):
        make_codec("int8").encode(make_maps(2, grid=(4, 3)))


def test_statistics_that_do_not_fit_are_refused():
    encoding = EncodingSpec(kind="int8")
    with pytest.raises(ValueError, match="int8 needs the statistics"):
        LevelCodec(encoding, teacher="a", level=1, width=8, grid=(2, 2))
    with pytest.raises(ValueError, match="statistics of 9 channels for 8"):
        LevelCodec(encoding, teacher="a", level=1, width=8, grid=(2, 2), statistics=identity_statistics(9))
    pca = EncodingSpec(kind="int8", pca=4)
    with pytest.raises(ValueError, match="hold None components, the encoding wants 4"):
        LevelCodec(pca, teacher="a", level=1, width=8, grid=(2, 2), statistics=identity_statistics(8))


def test_raw_encodings_need_no_statistics():
    codec = LevelCodec(EncodingSpec(kind="float16"), teacher="a", level=1, width=8, grid=(2, 2))
    assert codec.standardiser is None


def test_the_16_levels_are_those_of_a_gaussian():
    """Against the table of Max (1960)."""
    known = torch.tensor([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733])
    levels = gaussian_levels()
    torch.testing.assert_close(levels[8:], known, atol=5e-4, rtol=0)
    assert torch.equal(levels, -levels.flip(0))
    draws = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    nearest = levels[torch.bucketize(draws, (levels[1:] + levels[:-1]) / 2)]
    assert float((draws - nearest).square().mean()) == pytest.approx(0.009497, rel=0.01)


def test_the_levels_are_pinned():
    """They decide what stored bytes mean."""
    data = gaussian_levels().numpy().tobytes() + QUANTIZERS["int8"](1).levels.numpy().tobytes()
    assert sha256(data).hexdigest()[:16] == "a92f1ee78d10465f"


def test_two_channels_share_a_byte_the_even_one_below():
    quantizer = QUANTIZERS["int4"](3)
    packed = quantizer.encode(torch.randn(1, 1, 3))["values"]
    assert packed.shape == (1, 1, 2)
    assert int(packed[0, 0, 1]) < 16
