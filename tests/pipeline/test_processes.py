"""Work over processes: in order, prepared, and told in one line where a process dies."""

import os

import pytest

from pipeline.processes import in_order, worker_pool
from sak.errors import SakError

_state = []


def prepare(value):
    _state[:] = [value]


def add(number):
    return _state[0] + number


def die(number):
    os._exit(number)


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_results_are_in_order_and_workers_are_prepared(processes):
    with worker_pool(processes, "--workers", prepare=prepare, arguments=(100,)) as pool:
        assert list(in_order(pool, add, range(9), ahead=3)) == [100 + number for number in range(9)]


@pytest.mark.slow
def test_a_process_that_dies_is_one_line():
    with (
        pytest.raises(SakError, match="one of 1 processes died, perhaps for want of memory; try fewer --workers"),
        worker_pool(1, "--workers") as pool,
    ):
        pool.submit(die, 3).result()
