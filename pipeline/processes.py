"""Work over several processes: results in order, workers that end with their parent; and whether a process lives.

An interrupt (Ctrl-C) reaches the parent alone, which then ends its workers quietly.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from sak.errors import SakError

Result = TypeVar("Result")

WAITING = 4  # items handed to a process ahead of their turn: enough to keep it busy, few enough to leave at once


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class WorkPool:
    """Processes that hold a piece of work, sent to each once and not with every item; see `work_pool`.

    A method is a function of the work and an item; it is named, not bound, so that the work does not travel with it.
    """

    def __init__(self, executor: Executor, processes: int) -> None:
        self.executor, self.processes = executor, processes
        self._unfinished: deque[Future[Any]] = deque()

    def map(self, method: Callable[[Any, Any], Result], items: Iterable[Any], ahead: int) -> Iterator[Result]:
        """`method(work, item)` of every item, in order, `ahead` of them at most on their way."""
        return in_order(self.executor, partial(_on_work, method), iter(items), ahead)

    def map_batches(
        self, method: Callable[[Any, Any], Result], batches: Sequence[Sequence[Any]]
    ) -> Iterator[list[Result]]:
        """The same, batch by batch; the two after the one that is used are made meanwhile."""
        ahead = max(2 * max(map(len, batches), default=0), self.processes) if self.processes else 1
        results = self.map(method, chain.from_iterable(batches), ahead)
        for batch in batches:
            yield [next(results) for _ in batch]

    def submit(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Do `method(work, *arguments)` at some time; its result is one of `finished`."""
        self._unfinished.append(self.executor.submit(_on_work, method, *arguments))

    def finished(self, waiting: int = WAITING) -> Iterator[Any]:
        """Results of what was submitted, in that order, waiting for them until `waiting` a process are left."""
        while len(self._unfinished) > waiting * self.processes:
            yield self._unfinished.popleft().result()


@contextmanager
def work_pool(processes: int, option: str, work: Any) -> Iterator[WorkPool]:
    """A `worker_pool` whose processes hold `work` and compute with one thread each; 0 processes: this one."""
    with worker_pool(processes, option, prepare=_hold, arguments=(work, processes > 0)) as executor:
        yield WorkPool(executor, processes)


_held: list[Any] = []


def _hold(work: Any, alone: bool) -> None:
    _held[:] = [work]
    if alone:  # each of these would start a thread a core, in every process; none is loaded for a work without it
        for library, limit in (("torch", "set_num_threads"), ("cv2", "setNumThreads")):
            if library in sys.modules:
                getattr(sys.modules[library], limit)(1)


def _on_work(method: Callable[..., Result], *arguments: Any) -> Result:
    return method(_held[0], *arguments)


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
