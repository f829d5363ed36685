"""Batches for training: their order, their buffers, their state."""

import numpy as np
import pytest
import torch

from pipeline.cache.reader import batches as batches_module
from pipeline.cache.reader.batch import BufferPool, Filled, HeldBatchesError, ReleasedBatchError
from pipeline.cache.reader.batches import BatchState, FeatureBatches, ReadingOrder
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.stores.base import DamageError
from sak.errors import UsageError

KEYS = tuple(f"n{number:03d}" for number in range(50))


@pytest.fixture
def cache(writer, made):
    maker = writer(keys=KEYS, spec=made.spec(block=8), bad={"n011": "zero bytes"})
    maker.write("clip", views=2)
    return FeatureCache.open(maker.place)


@pytest.fixture(params=["here", "process"])
def where(request, monkeypatch):
    """Small epochs are read in the training process, others by another: both must do the same."""
    monkeypatch.setattr(batches_module, "_SMALL_EPOCH", 1 << 40 if request.param == "here" else 0)


def order(**options):
    return ReadingOrder(**{"batch_size": 8, "seed": 3, "block": 8, "window": 3, **options})


def keys_of(batches):
    found = []
    for batch in batches:
        found.append(batch.keys)
        batch.release()
    return found


@pytest.mark.usefixtures("where")
def test_a_batch_holds_the_features_of_its_keys_in_the_view_of_its_epoch(cache, made):
    batches = FeatureBatches(cache, order())
    for epoch in range(3):
        for batch in batches:
            assert (batch.epoch, batch.view) == (epoch, epoch % 2)
            target = batch.decode()["clip"][4]
            batch.release()
            assert torch.equal(target, made.features("clip", batch.keys, epoch % 2)[4].half().float())


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_each_sample_comes_once_an_epoch_but_for_the_dropped_part(cache, processes):
    found = keys_of(FeatureBatches(cache, order(), processes=processes, ahead=3))
    assert len(found) == 6
    assert len({key for keys in found for key in keys}) == 48
    whole = FeatureBatches(cache, order(batch_size=7, drop_last=True))
    assert sorted(key for keys in keys_of(whole) for key in keys) == sorted(set(KEYS) - {"n011"})


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_reads_the_same_global_batches(cache, ranks):
    alone = keys_of(FeatureBatches(cache, order()))
    parts = [keys_of(FeatureBatches(cache, order(rank=rank, ranks=ranks))) for rank in range(ranks)]
    assert [[key for part in batch for key in part] for batch in zip(*parts, strict=True)] == alone


def test_stopping_after_any_batch_and_resuming_gives_the_same_rest(cache):
    straight = FeatureBatches(cache, order())
    expected = keys_of(straight) + keys_of(straight)
    for stop in range(len(expected) - 1):
        first = FeatureBatches(cache, order(), ahead=4)
        seen = []
        while len(seen) <= stop:
            for batch in first:
                seen.append(batch.keys)
                batch.release()
                if len(seen) > stop:
                    break
        second = FeatureBatches(cache, order())
        second.load_state(BatchState.from_dict(first.state.as_dict()))
        rest = keys_of(second)
        assert seen + rest == expected[: len(seen) + len(rest)]
        assert len(seen) + len(rest) in (6, 12)


@pytest.mark.usefixtures("where")
def test_the_state_counts_what_was_consumed_not_what_was_prefetched(cache):
    batches = FeatureBatches(cache, order(), ahead=4)
    assert batches.state == BatchState(0, 0)
    reading = iter(batches)
    next(reading)
    assert batches.state == BatchState(0, 1)
    reading.close()
    assert batches.state == BatchState(0, 1)
    keys_of(batches)
    assert batches.state == BatchState(1, 0)


def test_validation_reads_all_samples_in_order_and_masks_the_padding(cache):
    batches = FeatureBatches(cache, order(shuffle=False, drop_last=False))
    masked, keys = [], []
    for batch in batches:
        masked.append(batch.mask.copy())
        keys += [key for key, counts in zip(batch.keys, batch.mask, strict=True) if counts]
        batch.release()
    assert keys == sorted(set(KEYS) - {"n011"})
    assert [int(mask.sum()) for mask in masked] == [8] * 6 + [1]


@pytest.mark.usefixtures("where")
def test_buffers_are_used_again_and_their_number_is_bounded(cache):
    batches = FeatureBatches(cache, order(), ahead=2)
    addresses = set()
    for _ in range(3):
        for batch in batches:
            addresses.add(batch.arrays["clip"]["l2/values"].ctypes.data)
            batch.release()
    assert len(addresses) <= 3


@pytest.mark.usefixtures("where")
def test_a_batch_keeps_its_bytes_until_it_is_released(cache, made):
    held = []
    batches = iter(FeatureBatches(cache, order(), ahead=2))
    for _ in range(3):
        held.append(next(batches))
    for batch in held:
        target = batch.decode()["clip"][2]
        assert torch.equal(target, made.features("clip", batch.keys, 0)[2].half().float())


@pytest.mark.usefixtures("where")
def test_holding_every_batch_is_an_error_not_a_wrong_batch(cache):
    with pytest.raises(HeldBatchesError, match=r"call batch\.release\(\)"):
        list(FeatureBatches(cache, order(), ahead=1))
    assert len(list(FeatureBatches(cache, order(), ahead=1, recycle=False))) == 6


@pytest.mark.usefixtures("where")
def test_batches_thrown_away_unreleased_stop_nothing_and_are_not_reused(cache):
    kept, numbers = [], 0
    for batch in FeatureBatches(cache, order(), ahead=1):
        kept.append((batch.arrays["clip"]["l2/values"], batch.keys))
        numbers += 1
        del batch
    assert numbers == 6
    fresh = {tuple(keys): cache.read(cache.sample_table.locate(keys)).arrays["clip"]["l2/values"] for _, keys in kept}
    assert all((array == fresh[tuple(keys)]).all() for array, keys in kept)


def test_buffers_wait_for_the_copy_to_the_device_before_they_are_filled():
    class Event:
        waited = False

        def query(self):
            return self.waited

        def synchronize(self):
            self.waited = True

    pool = BufferPool(lambda: Filled({"dino": {}}), limit=1)
    first, event = pool.take(), Event()
    pool.give_back(Filled(first.contents, copied=event))
    again = pool.take()
    assert not event.waited, "whoever fills them waits, not whoever takes them"
    assert again.wait() is first.contents
    assert event.waited


@pytest.mark.usefixtures("where")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need a CUDA device")
def test_pinned_buffers_reused_at_once_give_the_right_features_on_the_device(cache, made):
    batches = FeatureBatches(cache, order(), ahead=2, pin=True)
    for batch in batches:
        target = batch.decode("cuda")["clip"][4]
        batch.release()
        assert torch.equal(target.cpu(), made.features("clip", batch.keys, 0)[4].half().float())


def test_a_released_batch_cannot_be_read(cache):
    with next(iter(FeatureBatches(cache, order()))) as batch:
        batch.decode()
    with pytest.raises(ReleasedBatchError, match="was released"):
        batch.decode()
    batch.release()


@pytest.mark.usefixtures("where")
def test_damage_is_raised_where_the_batch_is_asked_for(cache):
    column = cache.readers["clip"].columns[0]
    path = column.store.files(0, 2)[0]
    data = bytearray(column.location.read_bytes(f"data/{path}"))
    data[10] ^= 1
    column.location.write_bytes(f"data/{path}", bytes(data))
    with pytest.raises(DamageError, match="sample 16"):
        keys_of(FeatureBatches(cache, order(shuffle=False, drop_last=False)))


def test_too_few_samples_for_a_batch_are_refused_before_anything_is_read(cache):
    with pytest.raises(UsageError, match="49 samples of view 0 make no batch of 64"):
        FeatureBatches(cache, order(batch_size=64))
    with pytest.raises(UsageError, match="must be positive"):
        FeatureBatches(cache, order(), ahead=0)


def test_absent_samples_change_nothing_for_the_blocks_of_others(cache):
    blocks = [np.asarray(cache.sample_table.locate(keys)) // 8 for keys in keys_of(FeatureBatches(cache, order()))]
    assert all(len(set(block.tolist())) <= 6 for block in blocks)
