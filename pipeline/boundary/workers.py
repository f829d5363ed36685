"""Images over processes, results in order; an interrupt ends the workers with their parent, and quietly."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from sak.errors import SakError

Result = TypeVar("Result")

WAITING = 4
"""Images handed to a process ahead of their turn: enough to keep it busy, few enough to leave at once."""


def run(job: Callable[[str], Result], names: Sequence[str], processes: int | None) -> Iterator[Result]:
    """`job` of every name, in the names' order; `processes` None takes all cores.

    What a job raises comes through; SakError where a process dies.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processes or cores, len(names))
    if workers == 1:
        yield from map(job, names)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        yield from _in_order(pool, job, names, WAITING * workers)
    except BrokenProcessPool as error:
        raise SakError(f"one of {workers} processes died, perhaps for want of memory; try fewer --processes") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, job: Callable[[str], Result], names: Sequence[str], ahead: int
) -> Iterator[Result]:
    rest = iter(names)
    waiting: deque[Future[Result]] = deque(pool.submit(job, name) for name in islice(rest, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(job, name) for name in islice(rest, 1))


def _start() -> None:
    """A worker leaves interrupts to its parent, and goes when that one goes, however it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
