"""Streams of randomness do not meet."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.scenes.compose import LARGEST_SEED, STREAMS, generator
from sak.errors import UsageError


def test_streams_seeds_indices_and_purposes_all_give_other_draws() -> None:
    draws = {
        generator(stream, seed, index, purpose).random()
        for stream, seed, index, purpose in product(STREAMS, range(5), range(5), ("scene", "sensor"))
    }
    assert len(draws) == len(STREAMS) * 5 * 5 * 2


@given(st.integers(0, LARGEST_SEED), st.integers(0, 10**9))
def test_draws_are_the_same_again(seed: int, index: int) -> None:
    assert generator("nyud", seed, index).random() == generator("nyud", seed, index).random()


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="seed is"):
        generator("nyud", seed)
