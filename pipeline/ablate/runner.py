"""Run a plan's jobs as processes: several at once, each after those it needs; failures do not stop the others."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.ablate.folders import State, StudyFolder
from pipeline.ablate.jobs import ExtractJob, Job
from pipeline.ablate.plan import StudyPlan
from pipeline.ablate.stage_settings import flag
from pipeline.progress import duration
from pipeline.train.stop import StopRequest

# One stage as a process of its own: what it says goes to a log; it is asked to stop, and it does not outlive us.

PROGRAM = (sys.executable, "-P", "-m", "cli")  # -P: not a cli.py of the folder that the user is in
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 8192


@dataclass
class Child:
    """A running stage."""

    process: "subprocess.Popen[bytes]"
    log: Path
    offset: int
    started: float

    @classmethod
    def start(
        cls,
        program: Sequence[str],
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str],
        keep_open: int | None = None,
    ) -> "Child":
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches it through us alone.

        `keep_open` is a file descriptor that it inherits: a lock on it is held as long as any stage runs.
        """
        with log.open("ab") as file:
            file.write(f"$ sak-cli {' '.join(arguments)}\n".encode())
            file.flush()
            offset = file.tell()
            process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=() if keep_open is None else (keep_open,),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return cls(process, log, offset, time.monotonic())

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def ask_to_stop(self) -> None:
        """It saves and stops; what was done is kept."""
        if self.ended() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its workers at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """The last thing it said, which is its error where it failed; empty where it said nothing yet."""
        with self.log.open("rb") as file:
            size = _size(file)
            file.seek(max(self.offset, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _size(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _end_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies, however it dies: a stage then saves and stops."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# The command line of `sak-cli` that does a job.


def arguments(job: Job, folder: StudyFolder, device: str) -> list[str]:
    """What follows `sak-cli`; a training that has a checkpoint goes on, one that has none begins anew."""
    if isinstance(job, ExtractJob):
        return _extract(job, folder, device)
    if job.stage == "evaluate":
        run = folder.run(job.start or "")
        return ["evaluate", str(run.root), *job.settings.arguments(), *("--device", device)]
    run = folder.run(job.name)
    begin = {State.NEW: "--overwrite", State.STARTED: "--resume", State.DONE: "--resume"}[folder.state(job)]
    caches: list[str] = []
    if job.reads is not None:
        caches += ["--cache", job.reads.cache]
        if job.reads.spec is not None:
            caches += ["--spec", str(folder.spec(job.reads.spec))]
    if job.measured_on is not None:
        caches += ["--val-cache", job.measured_on.cache]
    start = ["--init", str(folder.run(job.start).root)] if job.start is not None else []
    return [
        job.stage,
        *("--config", str(folder.recipe(job))),
        *caches,
        *start,
        *job.settings.arguments(),
        *("--device", device),
        *("--out", str(run.root)),
        *([begin] if Path(run.root).exists() else []),
    ]


def _extract(job: ExtractJob, folder: StudyFolder, device: str) -> list[str]:
    need = job.need
    if need.spec is None or need.data is None:
        raise ValueError(f"{job.name}: nothing says what to extract")
    return [
        "extract",
        *("--spec", str(folder.spec(need.spec))),
        *("--data", need.data),
        *("--cache", need.cache),
        *("--views", str(need.views)),
        *("--batch-size", str(need.batch_size)),
        *(flag("limit", need.limit) if need.limit is not None else []),
        *(flag("max_bad", need.max_bad) if need.max_bad is not None else []),
        *("--device", device),
    ]


LOOK_SECONDS = 0.1
TELL_SECONDS = 30.0
STOP_SECONDS = 120.0


@dataclass(frozen=True)
class JobSettings:
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
class JobsOutcome:
    """What became of the jobs: those done now, those failed with their last words, those left by an interruption."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    signal: int | None = None


class JobRunner:
    """One pass over the jobs of a plan."""

    def __init__(self, plan: StudyPlan, folder: StudyFolder, crew: JobSettings, say: Callable[[str], None]) -> None:
        self.folder, self.crew, self.say = folder, crew, say
        self.waiting: dict[str, Job] = {each.job.name: each.job for each in plan.pending}
        self.started: dict[str, Job] = {}
        self.running: dict[str, tuple[int, Child]] = {}
        self.outcome = JobsOutcome()
        self.total = len(self.waiting)
        self.told = time.monotonic()

    def __call__(self) -> JobsOutcome:
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
