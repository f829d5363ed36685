"""The main process's side of a run: jobs go to the workers through a sliding window, outcomes come back.

What stops a run early is here: Ctrl-C and SIGTERM, a failure in a worker, a scheduler that is gone.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any, TypeVar

from distributed import Future, KilledWorker, wait
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from pipeline.cluster import BLOCKS_IN_FLIGHT, Cluster
from pipeline.extract.job import Answer, BlockOutcome, extract_block
from pipeline.extract.plan import Job
from pipeline.extract.worker import ExtractionRun, forget_run, request_stop
from pipeline.progress import Say
from sak.errors import SakError

RETRIES = 2  # of what is no fault of the data or the user: those come home as answers
STOP_SECONDS = 3.0
_LOOK_SECONDS = 0.5  # until a finished job is waited for anew, and held ones and workers are looked at
_HELD_SECONDS = 2.0  # until a block that another run holds is asked for again
_WATCH_SECONDS = 5.0  # between two counts of the workers: one that died is started again within it
# What Dask's client raises once its scheduler has gone.
_LOST = (CancelledError, CommClosedError, ClosedClientError)

Value = TypeVar("Value")


class ExtractionError(SakError):
    """An extraction cannot go on; what was finished is kept, and running it again goes on from there."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """`exit_code` is that of the error behind it."""
        super().__init__(message)
        self.exit_code = exit_code


class SchedulerLostError(ExtractionError):
    """The Dask scheduler does not answer any more."""

    def __init__(self) -> None:
        """There is one thing to say."""
        super().__init__("the Dask scheduler is gone; start it again and run again: what was finished is kept")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, as schedulers send it before they take a machine away, ends the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ask(cluster: Cluster, task: Callable[..., Answer[Value]], run: ExtractionRun, *arguments: Any) -> Value:
    """Run one task on a worker and wait for it; ExtractionError where it failed."""
    running: dict[Future, None] = {}
    with _stopping_jobs_on_error(cluster, run, running):
        future = cluster.client.submit(task, run, *arguments, pure=False, retries=RETRIES)
        running[future] = None
        value: Value = _result(future, task.__name__)
    return value


def outcomes(cluster: Cluster, run: ExtractionRun, jobs: Sequence[Job], say: Say) -> Generator[BlockOutcome]:
    """Run all jobs; each outcome as it comes. Blocks that other runs hold are asked for again until they are done.

    Where all workers are gone it waits for others, and says so once. Close it: jobs that run when it ends early stop at
    their next batch, and are given a little time for that.
    """
    queue, held = deque(jobs), deque[tuple[float, Job]]()
    running: dict[Future, Job] = {}
    watch = _WorkerWatch(cluster, say)
    with _stopping_jobs_on_error(cluster, run, running):
        while queue or held or running:
            while held and held[0][0] <= time.monotonic():
                queue.append(held.popleft()[1])
            # Enough that no worker waits for the next job, and no more: submitted jobs hold what they will need.
            while queue and len(running) <= BLOCKS_IN_FLIGHT * max(1, _workers(cluster)):
                job = queue.popleft()
                running[cluster.client.submit(extract_block, run, job, pure=False, retries=RETRIES)] = job
            watch.look()
            for future in _finished(running):
                outcome: BlockOutcome = _result(future, running.pop(future).name)
                if outcome.held:
                    held.append((time.monotonic() + _HELD_SECONDS, replace(outcome.job, teachers=outcome.held)))
                yield outcome


def forget(cluster: Cluster, run: ExtractionRun) -> None:
    """Workers let go of a run's teachers and threads; they may outlive it."""
    _on_all_workers(cluster, forget_run, run.id)


@contextmanager
def _stopping_jobs_on_error(cluster: Cluster, run: ExtractionRun, running: Mapping[Future, object]) -> Iterator[None]:
    """Where this ends before its jobs do, ask them to stop, and wait until they have given back their leases."""
    try:
        yield
    except BaseException as error:
        end = time.monotonic() + STOP_SECONDS
        _on_all_workers(cluster, request_stop, run.id)
        with suppress(TimeoutError, *_LOST):
            wait(list(running), timeout=max(0.1, end - time.monotonic()))
        if isinstance(error, _LOST):
            raise SchedulerLostError from error
        raise


def _workers(cluster: Cluster) -> int:
    try:
        return len(cluster.client.scheduler_info(n_workers=-1)["workers"])
    except OSError as error:
        raise SchedulerLostError from error


class _WorkerWatch:
    """Says once, after a while, that there are no workers: a run that waits for them looks as if it hung."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        self._cluster, self._say = cluster, say
        self._looked = self._seen = time.monotonic()
        self._said = False

    def look(self) -> None:
        """Count the workers now and then."""
        now = time.monotonic()
        if now - self._looked < _WATCH_SECONDS:
            return
        self._looked = now
        if _workers(self._cluster):
            self._seen, self._said = now, False
        elif not self._said and now - self._seen > 2 * _WATCH_SECONDS:
            self._said = True
            self._say(
                "All workers are gone; waiting for others to join the scheduler (Ctrl-C stops: what was "
                "finished is kept)"
            )


def _finished(running: dict[Future, Job]) -> list[Future]:
    """Those that are finished; none after half a second without any."""
    if not running:
        time.sleep(_LOOK_SECONDS)
        return []
    try:
        return list(wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _result(future: Future, what: str) -> Any:
    """What a task gave; ExtractionError where it failed, or where its worker died again and again."""
    try:
        answer: Answer[Any] = future.result()
    except KilledWorker as error:
        raise ExtractionError(
            f"{what}: its worker died {error.allowed_failures + 1} times, perhaps of too little memory; "
            "lower --batch-size, or look at the workers' logs; run again to go on"
        ) from error
    if answer.failure is not None:
        raise ExtractionError(answer.failure, answer.exit_code)
    return answer.value


def _on_all_workers(cluster: Cluster, function: Callable[[str], None], run_id: str) -> None:
    """Call `function` in every worker, as far as it goes: workers may be gone, and Dask would wait for them."""

    def call() -> None:
        with suppress(OSError, RuntimeError, ValueError):
            cluster.client.run(function, run_id, on_error="ignore")

    thread = threading.Thread(target=call, name="call-workers", daemon=True)
    thread.start()
    thread.join(STOP_SECONDS)
