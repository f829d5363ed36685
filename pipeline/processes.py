"""Work over several processes: results in order, workers that end with their parent; and whether a process lives.

An interrupt (Ctrl-C) reaches the parent alone, which then ends its workers quietly.
"""

import errno
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from sak.errors import SakError

Result = TypeVar("Result")

WAITING = 4  # items handed to a process ahead of their turn: enough to keep it busy, few enough to leave at once


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(job: Callable[[str], Result], names: Sequence[str], processes: int | None) -> Iterator[Result]:
    """`job` of every name, in the names' order; `processes` None takes all cores.

    What a job raises comes through; SakError where a process dies.
    """
    workers = min(processes or usable_cores(), len(names))
    if workers == 1:
        yield from map(job, names)
        return
    with worker_pool(workers, "--processes") as pool:
        yield from in_order(pool, job, names, WAITING * workers)


def in_order(
    pool: Executor, job: Callable[[Any], Result], items: Sequence[Any] | Iterator[Any], ahead: int
) -> Iterator[Result]:
    """`job` of every item in the pool, in the items' order; at most `ahead` of them are submitted and not yet taken."""
    left = iter(items)
    with _interrupts_wait():
        waiting: deque[Future[Result]] = deque(pool.submit(job, item) for item in islice(left, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(job, item) for item in islice(left, 1))


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold SIGINT back: a process started meanwhile inherits that, so none is interrupted before it can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_pool(
    processes: int, option: str, *, prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[Executor]:
    """Fresh processes that have run `prepare(*arguments)` and end with the block; 0 processes: this one.

    SakError where one dies; it names the `option` that says how many there are.
    """
    if processes == 0:
        if prepare is not None:
            prepare(*arguments)
        yield _SameProcess()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(prepare, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise SakError(f"one of {processes} processes died, perhaps for want of memory; try fewer {option}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _SameProcess(Executor):
    """Does the work in this process, as soon as it is submitted."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """The finished work, done at once; what it raises is raised here."""
        done: Future[Result] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _start(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """A worker leaves interrupts to its parent, and ends when that one ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there, another user's too; one that ended but was not reaped still is."""
    try:
        os.kill(process, 0)  # signal 0 asks alone
    except OSError as error:
        return error.errno == errno.EPERM
    return True
