import io
import json
import tarfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cache.calibration import Calibrator
from pipeline.cache.column_codec import LevelFidelity, measure
from pipeline.cache.level_codec import LevelCodec
from pipeline.cache.projection import Reduced, Reduction
from pipeline.cache.spec import EncodingSpec
from sak.features import FeatureMaps
from sak.losses.projection import project
from sak.teachers.build import build_teacher

CALIBRATED, TESTED, SIZE = 32, 12, 128
TEACHERS = {
    "dinov2": {"teacher": "timm/vit_small_patch14_dinov2.lvd142m", "overrides": {"depth": 4}},
    "clip": {"teacher": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "overrides": {"depth": 4}},
    "sam": {
        "teacher": "timm/samvit_base_patch16.sa1b",
        "overrides": {"embed_dim": 192, "depth": 4, "num_heads": 3, "window_size": 7},
        "input_size": 256,
    },
}
GRIDS = {"dinov2": (9, 9), "clip": (8, 8), "sam": (16, 16)}
PLANTED = {
    "real": (),
    "huge channels": ("channels",),
    "huge tokens": ("tokens",),
    "huge channels and tokens": ("channels", "tokens"),
    "spikes": ("spikes",),
    "all": ("channels", "tokens", "spikes"),
}


@pytest.fixture(scope="module")
def photos(test_data) -> torch.Tensor:
    """Real photos, (44, 3, 128, 128) in [0, 1]."""
    images = []
    with tarfile.open(test_data / "imagenet-sample" / "train-000000.tar") as shard:
        for member in shard:
            if member.name.endswith(".jpg") and len(images) < CALIBRATED + TESTED:
                image = Image.open(io.BytesIO(shard.extractfile(member).read())).convert("RGB")
                images.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def features(photos) -> dict[str, FeatureMaps]:
    """What three teachers of the real architectures with random weights make of them, levels 2 and 4."""
    built = {
        name: build_teacher(weights="random:0", image_size=SIZE, levels=(2, 4), **row) for name, row in TEACHERS.items()
    }
    return {name: teacher(photos) for name, teacher in built.items()}


def plant(maps, kinds):
    """Channels 100 times as large, tokens 50 times, and single entries of hundreds of deviations, as ViTs have them."""
    generator = torch.Generator().manual_seed(1)
    maps, (batch, width, height, columns) = maps.clone(), maps.shape
    channels = torch.randperm(width, generator=generator)
    places = [torch.randperm(height * columns, generator=generator)[:4].tolist() for _ in range(batch)]
    spread = maps.std()
    if "channels" in kinds:
        maps[:, channels[:3]] *= 100
    flat = maps.flatten(2)
    for image, tokens in enumerate(places):
        if "tokens" in kinds:
            flat[image, :, tokens[:2]] *= 50
        if "spikes" in kinds:
            for token in tokens[2:]:
                flat[image, channels[3:5], token] += 300 * spread
    return flat.unflatten(2, (height, columns))


def fidelity_of(maps, reduction, *kinds) -> dict[str, LevelFidelity]:
    """Calibrated on the first maps, measured on the others."""
    reduced = reduction(maps)
    calibrator = Calibrator((1,))
    calibrator.update(FeatureMaps((1,), (reduced.map[:CALIBRATED],)))
    statistics = calibrator.finish().levels[1]
    leftover = None if reduced.leftover is None else reduced.leftover[CALIBRATED:]
    tested = Reduced(reduced.map[CALIBRATED:], leftover, reduced.energy[CALIBRATED:])
    sizes = {"teacher": "t", "level": 1, "width": maps.shape[1], "grid": reduction.stored_grid}
    found = {}
    for kind in kinds:
        codec = LevelCodec(EncodingSpec(kind=kind), **sizes, statistics=statistics)
        found[kind] = measure(tested, codec.decode(codec.encode(tested.map)), statistics)
    return found


def reduction_for(teacher) -> Reduction:
    return Reduction("projection" if teacher == "sam" else "native", GRIDS[teacher], (8, 8))


LEAST_COSINE = {"float16": 0.999999, "int8": 0.9999, "int4": 0.995}
MOST_ERROR = {"float16": 0.001, "bfloat16": 0.004, "int8": 0.01, "int4": 0.10}


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_features_keep_what_the_encoding_promises(features, teacher, planted):
    maps = plant(features[teacher][4], PLANTED[planted])
    for kind, found in fidelity_of(maps, reduction_for(teacher), "int8", "int4").items():
        assert found.standardised_cosine >= LEAST_COSINE[kind], (kind, found.summary())
        assert found.relative_error <= MOST_ERROR[kind], (kind, found.summary())
        # A cosine of raw maps that hangs on a few entries alone is more than four bits can promise.
        if kind == "int8" or planted in ("real", "huge channels", "spikes"):
            assert found.cosine >= LEAST_COSINE[kind], (kind, found.summary())


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS)
def test_sixteen_bits_keep_nearly_everything(features, teacher):
    for level in (2, 4):
        for kind, found in fidelity_of(features[teacher][level], reduction_for(teacher), "float16", "bfloat16").items():
            assert found.relative_error <= MOST_ERROR[kind], (kind, found.summary())
            assert min(found.cosine, found.token_cosine) >= LEAST_COSINE.get(kind, 0.99999), (kind, found.summary())


@pytest.mark.slow
def test_projection_of_real_features_is_exact(features):
    maps = features["sam"][4][:4]
    target = project(maps.double(), (8, 8))
    reduced = Reduction("projection", (16, 16), (8, 8))(maps)
    assert float((reduced.map - target.map).norm() / target.map.norm()) < 1e-6
    torch.testing.assert_close(reduced.leftover.double(), target.leftover, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_the_left_over_share_stands_beside_the_encodings_own_error(features):
    projected = fidelity_of(features["sam"][4], Reduction("projection", (16, 16), (8, 8)), "float16")["float16"]
    native = fidelity_of(features["sam"][4], Reduction("native", (16, 16), (8, 8)), "float16")["float16"]
    assert 0 < projected.leftover_share < 1
    assert native.leftover_share == 0
    assert projected.relative_error < 0.001
    assert projected.teacher_energy == pytest.approx(native.teacher_energy)


def made_up(batch=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, 8, 3, 3, generator=generator) * 3 + 1
    calibrator = Calibrator((1,))
    calibrator.update(FeatureMaps((1,), (maps,)))
    reduced = Reduced(maps, None, maps.double().square().sum((1, 2, 3)))
    return reduced, maps + 0.1 * torch.randn(maps.shape, generator=generator), calibrator.finish().levels[1]


def test_the_numbers_are_those_of_their_definitions():
    reduced, decoded, statistics = made_up()
    found = measure(reduced, decoded, statistics)
    a, b = reduced.map.double(), decoded.double()
    mean, std = statistics.mean[:, None, None], statistics.std[:, None, None]
    x, y = (a - mean) / std, (b - mean) / std
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()), rel=1e-7)
    assert found.token_cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=1).mean()), rel=1e-6)
    assert found.relative_error == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-5)
    assert found.standardised_cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-6)
    assert found.token_norm == pytest.approx(float(a.norm(dim=1).mean()), rel=1e-6)
    assert found.deviation_max == pytest.approx(float(x.abs().max()), rel=1e-5)
    assert (found.samples, found.tokens) == (6, 54)


def test_blocks_merge_into_the_record_of_the_whole():
    reduced, decoded, statistics = made_up()
    whole = asdict(measure(reduced, decoded, statistics))
    parts = LevelFidelity()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = Reduced(reduced.map[rows], None, reduced.energy[rows])
        parts = parts + measure(part, decoded[rows], statistics)
    for name, value in asdict(parts).items():
        assert value == pytest.approx(whole[name], rel=1e-9), name


def test_a_record_survives_json():
    found = measure(*made_up())
    assert LevelFidelity.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="these differ: \\['error'\\]"):
        LevelFidelity.from_json({name: value for name, value in found.to_json().items() if name != "error"})


def test_perfect_features_have_no_error():
    reduced, _, statistics = made_up()
    found = measure(reduced, reduced.map, statistics)
    assert found.relative_error == 0
    assert found.cosine == pytest.approx(1, abs=1e-12)


def test_an_empty_record_divides_by_nothing():
    assert LevelFidelity().summary()["cosine"] == 0
    found = measure(*made_up())
    assert LevelFidelity() + found == found
