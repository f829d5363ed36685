"""The order of reading."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.reader.batches import BatchState, ReadingOrder
from sak.errors import SakError, UsageError


def all_parts(order_of_rank, ranks, samples, epoch):
    orders = [order_of_rank(rank) for rank in range(ranks)]
    sequences = [order.sequence(samples, epoch) for order in orders]
    count = orders[0].batches(len(samples))
    return [
        np.concatenate([order.part(s, n).samples for order, s in zip(orders, sequences, strict=True)])
        for n in range(count)
    ]


@given(
    count=st.integers(1, 400),
    block=st.integers(1, 50),
    window=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
)
def test_each_sample_comes_exactly_once(count, block, window, seed, epoch):
    samples = np.arange(count)[np.arange(count) % 7 != 3]
    order = ReadingOrder(4, seed=seed, block=block, window=window)
    assert sorted(order.sequence(samples, epoch)) == list(samples)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(ranks):
    samples = np.arange(103)
    alone = all_parts(lambda rank: ReadingOrder(8, seed=3, block=10, window=3), 1, samples, 2)
    shared = all_parts(
        lambda rank: ReadingOrder(8, seed=3, block=10, window=3, rank=rank, ranks=ranks), ranks, samples, 2
    )
    assert len(alone) == 12
    assert all((a == b).all() for a, b in zip(alone, shared, strict=True))


def test_at_most_a_window_of_blocks_is_open_and_all_of_it_is_mixed():
    order = ReadingOrder(1, seed=1, block=32, window=4)
    blocks = order.sequence(np.arange(32 * 10), 0) // 32
    sizes = [len(set(part)) for part in np.split(blocks, [32 * 4, 32 * 7])]
    assert sizes == [4, 3, 3]
    assert len(set(blocks[:12])) > 2


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    samples = np.arange(200)
    first = ReadingOrder(4, seed=0).sequence(samples, 0)
    assert (first != ReadingOrder(4, seed=1).sequence(samples, 0)).any()
    assert (first != ReadingOrder(4, seed=0).sequence(samples, 1)).any()
    assert (first == ReadingOrder(20, seed=0, rank=1, ranks=2).sequence(samples, 0)).all()


def test_the_order_is_pinned():
    sequence = ReadingOrder(4, seed=7, block=64, window=4).sequence(np.arange(1000), 3)
    assert list(sequence[:8]) == PINNED_START
    assert hashlib.sha256(sequence.astype("<i8").tobytes()).hexdigest()[:16] == PINNED_DIGEST


PINNED_START = [848, 956, 44, 893, 40, 879, 874, 876]
PINNED_DIGEST = "268dd85ffd25f6d0"


def test_draws_are_uniform_within_a_window():
    sequence = ReadingOrder(1, seed=5, block=1000, window=100).sequence(np.arange(100_000), 0)
    correlation = np.corrcoef(sequence, np.arange(100_000))[0, 1]
    assert abs(correlation) < 0.02


def test_training_drops_the_last_partial_batch_and_validation_pads_it_with_a_mask():
    samples = np.arange(10, 20)
    assert ReadingOrder(4).batches(10) == 2
    parts = [ReadingOrder(4, shuffle=False, drop_last=False, rank=r, ranks=2).part(samples, 2) for r in (0, 1)]
    assert [list(part.samples) for part in parts] == [[18, 19], [18, 18]]
    assert [list(part.mask) for part in parts] == [[True, True], [False, False]]
    with pytest.raises(IndexError, match="batch 3 of 3"):
        ReadingOrder(4, shuffle=False, drop_last=False).part(samples, 3)


def test_an_epoch_of_imagenet_is_one_permutation():
    sequence = ReadingOrder(1024).sequence(np.arange(1_281_167), 0)
    assert (np.bincount(sequence, minlength=1_281_167) == 1).all()


def test_state_survives_json_and_refuses_anything_else():
    state = BatchState(3, 17)
    assert BatchState.from_dict(state.as_dict()) == state
    for wrong in ({}, {"epoch": 1}, {"epoch": "x", "batches": 1}, {"epoch": -1, "batches": 0}, {"epoch": None}):
        with pytest.raises(SakError, match="not a reading state"):
            BatchState.from_dict(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10, "ranks": 4}, "does not divide among 4 ranks"),
        ({"batch_size": 0}, "must be positive"),
        ({"batch_size": 4, "rank": 2, "ranks": 2}, "rank 2 of 2"),
    ],
)
def test_impossible_orders_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        ReadingOrder(**arguments)
