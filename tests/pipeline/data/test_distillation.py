"""Batches for distillation: the cache's own pixels, in an order that follows from the step alone."""

import signal
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.cache.reader.batches import ReadingOrder
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.data.distillation import CachedBatches, join, normalise
from pipeline.data.live_teachers import LiveTeachers, live_from_manifest, manifest_of
from pipeline.data.loading import LoadFailure, PhotometricJitter, ViewDataset, WantedViews, load_batches
from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.source import ReplayError
from pipeline.images.views import make_view, render
from sak.errors import SakError
from sak.losses.projection import ProjectedTarget


@pytest.fixture
def cache(small_world):
    return FeatureCache.open(small_world.cache)


def batches_of(cache, **changes):
    order = ReadingOrder(4, seed=1, block=cache.block, **changes.pop("order", {}))
    return CachedBatches(cache, order, torch.device("cpu"), **changes)


def taken(source, start, count):
    found = []
    stream = source.start_at(start)
    for batch in islice(stream, count):
        found.append((tuple(batch.keys), batch.images.clone(), batch.targets["clip"].maps[0].clone()))
        batch.release()
    stream.close()
    return found


def test_images_are_the_views_of_their_keys_and_targets_belong_to_them(cache):
    batch = next(batches_of(cache).start_at(0))
    (index,) = cache.sample_table.indices.values()
    for row, key in enumerate(batch.keys):
        sample = int(index.locate([key])[0])
        image = decode_rgb(ImageAccess(index).read(sample))
        pixels = render(image, make_view(cache.view_policy, key, 0, image.size))
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), pixels)
    samples = [int(index.locate([key])[0]) for key in batch.keys]
    expected = cache.read(samples, 0).decode()
    assert torch.equal(batch.targets["clip"].maps[2], expected["clip"].maps[2])


def test_batches_follow_from_the_step_across_epochs_and_views(cache):
    straight = taken(batches_of(cache), 0, 12)
    assert straight[0][0] != straight[5][0]
    for start in (3, 5, 9):
        for mine, theirs in zip(taken(batches_of(cache), start, 3), straight[start:], strict=False):
            assert mine[0] == theirs[0]
            assert torch.equal(mine[1], theirs[1])
            assert torch.equal(mine[2], theirs[2])
    seen = {key: images[row] for keys, images, _ in straight[:5] for row, key in enumerate(keys)}
    later = {key: images[row] for keys, images, _ in straight[5:10] for row, key in enumerate(keys)}
    assert seen.keys() == later.keys()
    assert not any(torch.equal(seen[key], later[key]) for key in seen)  # epoch 1 reads view 1


def test_the_parts_of_all_ranks_are_the_global_batch(cache):
    whole = taken(batches_of(cache), 0, 6)
    parts = [taken(batches_of(cache, order={"rank": rank, "ranks": 2}), 0, 6) for rank in (0, 1)]
    for (keys, _, _), (first, _, _), (second, _, _) in zip(whole, *parts, strict=True):
        assert keys == first + second


def test_other_pixels_than_the_teachers_saw_are_refused_by_sample(cache):
    batch = next(batches_of(cache).start_at(0))
    other = ViewDataset(cache.sample_table, cache.view_policy.model_copy(update={"seed": 77}))
    images = other.load(WantedViews(batch.encoded.samples.tolist(), 0, 0))
    with pytest.raises(ReplayError, match=r"sample '.*', view 0: the pixels \(CRC") as error:
        join(images, batch.encoded, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_split_batch_holds_the_rows_of_the_whole(cache):
    batch = next(batches_of(cache).start_at(0))
    first, second = batch.split(2)
    assert [*first.keys, *second.keys] == list(batch.keys)
    assert torch.equal(torch.cat([first.inputs, second.inputs]), batch.inputs)
    whole, part = batch.targets["sam"].maps[1], second.targets["sam"].maps[1]
    assert isinstance(part, ProjectedTarget)
    assert torch.equal(part.map, whole.map[2:])
    assert torch.equal(part.leftover, whole.leftover[2:])


def test_normalised_images_are_those_of_imagenet():
    found = normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found[0, :, 0, 0], expected)


def test_jitter_follows_from_seed_epoch_and_key():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    jitter = PhotometricJitter(0.4, 0.4, 0.4)
    first = jitter(pixels, seed=0, epoch=0, key="a")
    assert torch.equal(first, jitter(pixels, seed=0, epoch=0, key="a"))
    for other in ({"seed": 1}, {"epoch": 1}, {"key": "b"}):
        assert not torch.equal(first, jitter(pixels, **({"seed": 0, "epoch": 0, "key": "a"} | other)))


def test_a_live_teacher_gives_the_maps_that_were_cached(cache):
    batch = next(batches_of(cache).start_at(0))
    live = live_from_manifest(manifest_of(str(cache.cache), "clip"), (2, 4), torch.device("cpu"))
    maps = LiveTeachers({"clip": live})(batch.images.float() / 255)["clip"]
    assert maps.levels == (2, 4)
    for mine, level in zip(maps.maps, (1, 3), strict=True):
        torch.testing.assert_close(mine, batch.targets["clip"].maps[level], rtol=1e-3, atol=1e-3)


def test_without_features_nothing_of_them_is_read(cache):
    source = batches_of(cache, read_features=False)
    keys = [tuple(batch.keys) for batch in islice(source.start_at(0), 6)]
    assert cache.bytes_read == 0
    assert keys == [keys for keys, _, _ in taken(batches_of(cache), 0, 6)]


def test_what_goes_wrong_in_a_worker_comes_home_as_one_line(cache, monkeypatch, tmp_path):
    from pipeline.data import loading

    (index,) = cache.sample_table.indices.values()
    monkeypatch.setattr(loading, "get_worker_info", lambda: "a worker")
    gone = replace(cache.sample_table, indices={"x": index.relocated(index.data)}, rows={"x": None})
    monkeypatch.setattr(ImageAccess, "read", lambda self, row: (_ for _ in ()).throw(SakError("shard.tar is gone")))
    dataset = ViewDataset(gone, cache.view_policy)
    assert dataset[WantedViews([0], 0, 0)] == LoadFailure("shard.tar is gone")
    with pytest.raises(SakError, match=r"^shard.tar is gone$"):
        next(load_batches(dataset, iter([WantedViews([0], 0, 0)]), workers=0, pin=False))


@pytest.mark.slow
def test_workers_give_the_same_batches_and_leave_signals_to_the_training(cache):
    from multiprocessing import active_children

    plain = taken(batches_of(cache), 0, 4)
    stream = batches_of(cache, workers=1).start_at(0)
    for number, batch in enumerate(islice(stream, 4)):
        if number == 1:
            for child in active_children():
                child.terminate()  # SIGTERM, as a scheduler sends it to the whole group
        assert torch.equal(batch.images, plain[number][1])
        batch.release()
    stream.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture
def unwatched():
    """Another test's loader may have left torch's handler of dead workers in this process."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(cache, unwatched):
    from multiprocessing import active_children

    others = active_children()
    stream = batches_of(cache, workers=1).start_at(0)

    def train():
        for batch in islice(stream, 20):
            batch.release()
            for child in active_children():
                if child not in others:
                    child.kill()

    told = r"^a process that decodes images died, perhaps for want of memory; lower data.workers \(1\)$"
    with pytest.raises(SakError, match=told):
        train()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.slow
def test_a_worker_that_dies_interrupts_nothing_else(cache, unwatched):
    """torch raises wherever the process is, in the midst of writing a checkpoint too."""
    from multiprocessing import active_children

    others = active_children()
    stream = batches_of(cache, workers=1).start_at(0)
    next(stream).release()
    for child in active_children():
        if child not in others:
            child.kill()
            child.join()
    time.sleep(0.1)
    stream.close()


def test_the_remedy_names_what_was_waited_for(cache):
    source = batches_of(cache, workers=3)
    source.waits.images = 1.0
    assert "data.workers (3)" in source.remedy()
    source.waits.features = 2.0
    assert "faster disk" in source.remedy()
