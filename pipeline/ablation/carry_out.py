"""Run a plan's jobs as processes: several at once, each after those it needs; failures do not stop the others."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.ablation.child import PROGRAM, Child
from pipeline.ablation.commands import arguments
from pipeline.ablation.folders import StudyFolder
from pipeline.ablation.jobs import ExtractJob, Job
from pipeline.ablation.plan import StudyPlan
from pipeline.progress import duration
from pipeline.training.stop import StopRequest

LOOK_SECONDS = 0.1
TELL_SECONDS = 30.0
STOP_SECONDS = 120.0


@dataclass(frozen=True)
class Crew:
    """How jobs are run: how many at once, on what, by which program."""

    jobs: int
    device: str
    gpus: Sequence[str] = ()
    cores: int = 1
    program: Sequence[str] = PROGRAM
    stop_seconds: float = STOP_SECONDS
    lock: int | None = None

    def environment(self, slot: int) -> dict[str, str]:
        """A slot's GPU and its share of the cores.

        Where one of the two thread counts is set, the other follows it: apart, MKL's threads and OpenMP's fight.
        """
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        asked = next((os.environ[name] for name in names if name in os.environ), None)
        threads = asked or str(max(1, self.cores // self.jobs))
        shared = {name: threads for name in names if name not in os.environ}
        return {**shared, "CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else shared


@dataclass
class Outcome:
    """What became of the jobs: those done now, those failed with their last words, those left by an interruption."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    signal: int | None = None


class CarryOut:
    """One pass over the jobs of a plan."""

    def __init__(self, plan: StudyPlan, folder: StudyFolder, crew: Crew, say: Callable[[str], None]) -> None:
        self.folder, self.crew, self.say = folder, crew, say
        self.waiting: dict[str, Job] = {each.job.name: each.job for each in plan.pending}
        self.started: dict[str, Job] = {}
        self.running: dict[str, tuple[int, Child]] = {}
        self.outcome = Outcome()
        self.total = len(self.waiting)
        self.told = time.monotonic()

    def __call__(self) -> Outcome:
        """Run everything; SIGINT and SIGTERM ask the running stages to save and stop."""
        with StopRequest() as stop:
            try:
                while (self.waiting or self.running) and not stop.wanted:
                    self._start_ready()
                    self._collect()
                    self._tell()
                    time.sleep(LOOK_SECONDS)
            except KeyboardInterrupt:
                self._kill()
                raise
            if stop.wanted:
                self._stop()
                self.outcome.signal = stop.signal
        self.outcome.left = [*self.waiting]
        return self.outcome

    def _start_ready(self) -> None:
        for name in list(self.waiting):
            job = self.waiting[name]
            failed = next((each for each in job.after if each in self.outcome.failed), None)
            if failed is not None:
                del self.waiting[name]
                self.outcome.failed[name] = f"it needs {failed}, which failed"
            elif len(self.running) < self.crew.jobs and self._ready(job):
                del self.waiting[name]
                self._start(job)

    def _ready(self, job: Job) -> bool:
        """Whether nothing that it needs is missing, and nobody extracts into the same cache."""
        if any(each in self.waiting or each in self.running for each in job.after):
            return False
        busy = {running.need.cache for running in self._running_jobs() if isinstance(running, ExtractJob)}
        return not (isinstance(job, ExtractJob) and job.need.cache in busy)

    def _running_jobs(self) -> list[Job]:
        return [self.started[name] for name in self.running]

    def _start(self, job: Job) -> None:
        taken = {slot for slot, _ in self.running.values()}
        slot = next(number for number in range(self.crew.jobs) if number not in taken)
        self.folder.write_inputs(job)
        self.started[job.name] = job
        child = Child.start(
            self.crew.program,
            arguments(job, self.folder, self.crew.device),
            self.folder.log(job.name),
            environment=self.crew.environment(slot),
            keep_open=self.crew.lock,
        )
        self.running[job.name] = (slot, child)
        self.say(f"{self._count()} {job.name}: started, log {self.folder.log(job.name)}")

    def _collect(self) -> None:
        for name, (_, child) in list(self.running.items()):
            code = child.ended()
            if code is None:
                continue
            del self.running[name]
            if code == 0:
                self.outcome.done.append(name)
                self.say(f"{self._count()} {name}: done in {duration(child.seconds)}")
            else:
                self.outcome.failed[name] = _reason(code, child)
                self.say(f"{self._count()} {name}: FAILED: {self.outcome.failed[name]}")

    def _count(self) -> str:
        return f"[{len(self.outcome.done) + len(self.outcome.failed)}/{self.total}]"

    def _tell(self) -> None:
        """Now and then what the running stages said last: their rate and time left."""
        if time.monotonic() - self.told < TELL_SECONDS:
            return
        self.told = time.monotonic()
        for name, (_, child) in self.running.items():
            self.say(f"{self._count()} {name}: {child.last_line() or 'starting'}")

    def _stop(self) -> None:
        for _, child in self.running.values():
            child.ask_to_stop()
        if self.running:
            self.say(f"Stopping: {', '.join(self.running)} save and stop; Ctrl-C again ends them at once")
        deadline = time.monotonic() + self.crew.stop_seconds
        try:
            while self.running and time.monotonic() < deadline:
                for name in [each for each, (_, child) in self.running.items() if child.ended() is not None]:
                    del self.running[name]
                    self.waiting[name] = self.started[name]
                time.sleep(LOOK_SECONDS)
        finally:
            self._kill()

    def _kill(self) -> None:
        for name, (_, child) in list(self.running.items()):
            child.kill()
            del self.running[name]
            self.waiting[name] = self.started[name]


def _reason(code: int, child: Child) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}, perhaps for want of memory"
        except ValueError:
            return f"killed by signal {-code}"
    return child.last_line() or f"it ended with exit code {code} and said nothing"
