"""Scenes over processes, results in order: what is written does not depend on how many there were."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pipeline.processes import in_order, usable_cores, worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]

WORTH_A_PROCESS = 24
"""A process takes about as long to start as this many scenes take to render."""

MOST = 8
WAITING = 6
"""Scenes handed to a process ahead of their turn."""


@dataclass
class Workers:
    """Processes at work; `progress` is told how many of `total` results have been handed out."""

    pool: Executor
    ahead: int
    total: int
    progress: Progress | None
    done: int = 0

    def in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`work` of each item, in the items' order; only a few results per process wait at a time."""
        for result in in_order(self.pool, work, items, self.ahead):
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield result


@contextmanager
def scene_workers(processes: int | None, total: int, progress: Progress | None) -> Iterator[Workers]:
    """`processes` fresh processes; this one if that is 1, as many as `total` scenes are worth if it is None.

    A process that dies is a SakError; what the work raises comes through.
    """
    count = processes or max(1, min(usable_cores(), MOST, total // WORTH_A_PROCESS))
    with worker_pool(count if count > 1 else 0, "--processes") as pool:
        yield Workers(pool, WAITING * count if count > 1 else 1, total, progress)
