"""Work over processes, results in order: what is written does not depend on how many there were."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import TypeVar

from sak.errors import SakError

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_A_PROCESS = 24
"""A process takes about as long to start as this many scenes take to render."""

MOST = 8


def usual_processes(items: int) -> int:
    """One process per core this one may use, as far as there is work for them; at most MOST, for their memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST, items // WORTH_A_PROCESS))


def _start() -> None:
    """A worker leaves interrupts to its parent, and goes when that one goes, however it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold SIGINT back for the block: a process started in it inherits that, so none is hit before it can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """This process if `processes` is 1, else as many fresh ones; use it as a context.

    `progress` is told how many of `total` results have been handed out.
    """

    def __init__(self, processes: int, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.processes, self.total, self.progress, self.done = processes, total, progress, 0
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.processes > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`work` of each item, in the items' order; only a few results per process wait at a time.

        A process that dies is a SakError; what `work` raises comes through.
        """
        for result in map(work, items) if self.pool is None else self._pooled(self.pool, work, items):
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield result

    def _pooled(
        self, pool: ProcessPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        rest = iter(items)
        try:
            with _interrupts_wait():
                waiting.extend(pool.submit(work, item) for item in islice(rest, 6 * self.processes))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
        except BrokenProcessPool as error:
            raise SakError(
                f"demo data: one of {self.processes} processes died, perhaps for want of memory; try fewer --processes"
            ) from error
