"""Run a plan's jobs as processes: several at once, each after those it needs; failures do not stop the others."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.ablate.folders import State, StudyFolder, last_lines
from pipeline.ablate.jobs import ExtractJob, StudyJob
from pipeline.ablate.plan import StudyPlan
from pipeline.ablate.stage_settings import flag
from pipeline.progress import duration
from pipeline.train.stop import StopRequest

PROGRAM = (sys.executable, "-P", "-m", "cli")  # -P: not a cli.py of the folder that the user is in
POLL_SECONDS = 0.1
REPORT_SECONDS = 30.0
STOP_SECONDS = 120.0  # to save and stop, before a stage is killed
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class JobSettings:
    """How jobs are run: how many at once, on what, by which program.

    `lock` is a file descriptor that every stage inherits: a lock on it is held as long as any stage runs.
    """

    jobs: int
    device: str
    gpus: Sequence[str] = ()
    cores: int = 1
    program: Sequence[str] = PROGRAM
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

    def __init__(self, plan: StudyPlan, folder: StudyFolder, settings: JobSettings, say: Callable[[str], None]) -> None:
        self.folder, self.settings, self.say = folder, settings, say
        self.waiting: dict[str, StudyJob] = {pending.job.name: pending.job for pending in plan.pending}
        self.running: dict[str, RunningJob] = {}
        self.outcome = JobsOutcome()
        self.total = len(self.waiting)
        self.reported = time.monotonic()

    def __call__(self) -> JobsOutcome:
        """Run everything; SIGINT and SIGTERM ask the running stages to save and stop."""
        with StopRequest() as stop:
            try:
                while (self.waiting or self.running) and not stop.wanted:
                    self._start_ready()
                    self._collect()
                    self._report()
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                self._kill()
                raise
            if stop.wanted:
                self._stop()
                self.outcome.signal = stop.signal
        self.outcome.left = [*self.waiting]
        return self.outcome

    def _start_ready(self) -> None:
        for name, job in list(self.waiting.items()):
            failed = next((before for before in job.after if before in self.outcome.failed), None)
            if failed is not None:
                del self.waiting[name]
                self.outcome.failed[name] = f"it needs {failed}, which failed"
            elif len(self.running) < self.settings.jobs and self._is_ready(job):
                del self.waiting[name]
                self._start(job)

    def _is_ready(self, job: StudyJob) -> bool:
        """Whether nothing that it needs is missing, and nobody extracts into the same cache."""
        if any(before in self.waiting or before in self.running for before in job.after):
            return False
        busy = {running.job.need.cache for running in self.running.values() if isinstance(running.job, ExtractJob)}
        return not (isinstance(job, ExtractJob) and job.need.cache in busy)

    def _start(self, job: StudyJob) -> None:
        taken = {running.slot for running in self.running.values()}
        slot = next(number for number in range(self.settings.jobs) if number not in taken)
        self.folder.write_inputs(job)
        self.running[job.name] = RunningJob.start(job, slot, self.folder, self.settings)
        self._say(job.name, f"started, log {self.folder.log(job.name)}")

    def _collect(self) -> None:
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            if code == 0:
                self.outcome.done.append(name)
                self._say(name, f"done in {duration(time.monotonic() - running.started)}")
            else:
                self.outcome.failed[name] = running.failure(code)
                self._say(name, f"FAILED: {self.outcome.failed[name]}")

    def _say(self, name: str, text: str) -> None:
        self.say(f"[{len(self.outcome.done) + len(self.outcome.failed)}/{self.total}] {name}: {text}")

    def _report(self) -> None:
        """Now and then what the running stages said last: their rate and time left."""
        if time.monotonic() - self.reported < REPORT_SECONDS:
            return
        self.reported = time.monotonic()
        for name, running in self.running.items():
            self._say(name, running.last_line() or "starting")

    def _stop(self) -> None:
        for running in self.running.values():
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGTERM)  # it saves and stops; what was done is kept
        if self.running:
            self.say(f"Stopping: {', '.join(self.running)} save and stop; Ctrl-C again ends them at once")
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while self.running and time.monotonic() < deadline:
                for name in [name for name, running in self.running.items() if running.process.poll() is not None]:
                    self.waiting[name] = self.running.pop(name).job
                time.sleep(POLL_SECONDS)
        finally:
            self._kill()

    def _kill(self) -> None:
        for name, running in list(self.running.items()):
            running.kill()
            self.waiting[name] = self.running.pop(name).job


@dataclass
class RunningJob:
    """A stage as a process of its own: what it says goes to a log, from `offset` on, and it does not outlive us."""

    job: StudyJob
    slot: int
    log: Path
    offset: int
    process: "subprocess.Popen[bytes]"
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, job: StudyJob, slot: int, folder: StudyFolder, settings: JobSettings) -> "RunningJob":
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches it through us alone."""
        command, log = arguments(job, folder, settings.device), folder.log(job.name)
        with log.open("ab") as file:
            file.write(f"$ sak-cli {' '.join(command)}\n".encode())
            file.flush()
            offset = file.tell()  # now: the stage will write through the same position
            process = subprocess.Popen(
                [*settings.program, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings.environment(slot)},
                start_new_session=True,
                pass_fds=() if settings.lock is None else (settings.lock,),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return cls(job, slot, log, offset, process)

    def kill(self) -> None:
        """End it and its workers at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """The last line it printed, which is its error where it failed; empty where it printed nothing yet."""
        lines = reversed(last_lines(self.log, _TAIL_BYTES, self.offset))
        return next((line.strip() for line in lines if line.strip()), "")

    def failure(self, code: int) -> str:
        """Why it ended with a code that is not 0."""
        if code >= 0:
            return self.last_line() or f"it ended with exit code {code} and said nothing"
        try:
            return f"killed by {signal.Signals(-code).name}, perhaps for want of memory"
        except ValueError:  # a real-time signal
            return f"killed by signal {-code}"


def _end_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies, however it dies: a stage then saves and stops."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def arguments(job: StudyJob, folder: StudyFolder, device: str) -> list[str]:
    """What follows `sak-cli`; a training that has a checkpoint goes on, one that has none begins anew."""
    if isinstance(job, ExtractJob):
        return _extraction(job, folder, device)
    if job.stage == "evaluate":
        run = folder.run(job.start or "")
        return ["evaluate", str(run.root), *job.settings.arguments(), *_flags(device=device)]
    run, reads = folder.run(job.name), job.reads
    made_of = _flags(
        config=folder.recipe(job),
        cache=reads and reads.cache,
        spec=folder.spec(reads.spec) if reads and reads.spec else None,
        val_cache=job.measured_on and job.measured_on.cache,
        init=folder.run(job.start).root if job.start else None,
    )
    begin = ["--overwrite" if folder.state(job) is State.NEW else "--resume"] if run.root.exists() else []
    return [job.stage, *made_of, *job.settings.arguments(), *_flags(device=device, out=run.root), *begin]


def _extraction(job: ExtractJob, folder: StudyFolder, device: str) -> list[str]:
    need = job.need
    if need.spec is None or need.data is None:
        raise ValueError(f"{job.name}: nothing says what to extract")
    flags = _flags(
        spec=folder.spec(need.spec),
        data=need.data,
        cache=need.cache,
        views=need.views,
        batch_size=need.batch_size,
        limit=need.limit,
        max_bad=need.max_bad,
        device=device,
    )
    return ["extract", *flags]


def _flags(**settings: Any) -> list[str]:
    """Those that are not None."""
    given = {name: value for name, value in settings.items() if value is not None}
    return [argument for name, value in given.items() for argument in flag(name, value)]
