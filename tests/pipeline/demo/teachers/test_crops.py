import numpy as np
import pytest
import torch

from pipeline.demo.teachers.crops import CropPlan, SceneBatches, cut, random_of, whole

CPU = torch.device("cpu")
PLANS = {"large": CropPlan(32, (0.4, 1.0), count=2, grey=0.2), "labelled": CropPlan(32, (0.3, 1.0), labels=True)}


def source(pool, seed=0, batch_size=8):
    return SceneBatches(pool, np.arange(100), PLANS, batch_size, seed, CPU)


def test_a_batch_depends_on_seed_and_step_alone(pool):
    batches = source(pool).start_at(0)
    fifth = [next(batches) for _ in range(5)][-1]
    again = next(source(pool).start_at(4))
    assert again.keys == fifth.keys
    assert all(torch.equal(again.tensors[name], fifth.tensors[name]) for name in fifth.tensors)
    assert next(source(pool, seed=1).start_at(4)).keys != fifth.keys


def test_an_epoch_shows_every_scene_once(pool):
    batches = source(pool, batch_size=10)
    seen = [key for step in range(batches.steps_per_epoch) for key in batches.batch(step).keys]
    assert sorted(map(int, seen)) == list(range(100))


def test_labels_are_cut_as_the_pixels_are(pool):
    batch = source(pool).batch(0)
    images, ids = batch.tensors["labelled"], batch.tensors["labelled.instances"]
    assert images.shape == (8, 3, 32, 32)
    assert batch.tensors["large"].shape == (16, 3, 32, 32)
    for image, map_ in zip(images, ids, strict=True):
        for number in map_.unique():
            inner = map_ == number
            eroded = -torch.nn.functional.max_pool2d(-inner[None].float(), 5, stride=1, padding=2)[0] > 0
            if eroded.sum() > 8:
                assert image[:, eroded].std(1).max() < 0.35  # one colour each, but for two squares of one number


def test_a_whole_scene_is_shown_as_it_is(pool):
    batch = cut(pool, np.arange(4), {"whole": whole(64, labels=True)}, random_of(0, "x", 0), CPU)
    assert np.array_equal(batch.tensors["whole.instances"][2], pool[2]["instances"])
    shown = batch.tensors["whole"][2].permute(1, 2, 0) * torch.tensor((0.229, 0.224, 0.225))
    shown = (shown + torch.tensor((0.485, 0.456, 0.406))) * 255
    assert np.allclose(shown, pool[2]["rgb"], atol=1e-2)


def test_batches_are_not_split(pool):
    with pytest.raises(ValueError, match="leave it at 1"):
        source(pool).batch(0).split(2)
