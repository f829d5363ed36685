"""Studies: a grid of stages over shared caches, resumable, one table out; running it again is how one goes on."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.ablate.folders import StudyFolder
from pipeline.ablate.jobs import make_work
from pipeline.ablate.plan import StudyPlan, make_plan
from pipeline.ablate.results import Results, check_columns, collect
from pipeline.ablate.runner import PROGRAM, JobRunner, JobSettings, JobsOutcome
from pipeline.ablate.study import Study, load_study
from pipeline.ablate.tables import latex, markdown, plot_svg, results_text, rows_csv, runs_csv
from pipeline.cluster import resolve_device, visible_gpus
from pipeline.processes import usable_cores
from pipeline.storage.local import replace_durably
from sak.errors import SakError, UsageError

DEVICE = "cuda"
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class AblateConfig:
    """A study's file and how it is run.

    `out` is by default `runs/<the file's name>`. `jobs`: stages at once, by default one for each visible GPU. `device`:
    by default the study's. `program` is the command that runs a stage.
    """

    study: Path
    out: Path | None = None
    jobs: int | None = None
    dry_run: bool = False
    device: str | None = None
    overrides: Sequence[str] = ()
    program: Sequence[str] = PROGRAM

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")

    @property
    def folder(self) -> StudyFolder:
        """Where everything goes."""
        return StudyFolder(self.out if self.out is not None else Path("runs") / self.study.stem)


@dataclass(frozen=True)
class AblateReport:
    """The plan, what became of its jobs (None: a dry run), and the tables."""

    plan: StudyPlan
    folder: Path
    outcome: JobsOutcome | None = None
    results: Results | None = None

    @property
    def exit_code(self) -> int:
        """0 where everything is there, 1 where something failed, 128 and the signal where it was stopped."""
        if self.outcome is None:
            return 0
        if self.outcome.signal is not None:
            return 128 + self.outcome.signal
        return 1 if self.outcome.failed or (self.results is not None and self.results.failures) else 0

    def to_text(self, width: int) -> str:
        """For the screen: the plan of a dry run; else the table, and what failed."""
        if self.outcome is None or self.results is None:
            return self.plan.to_text()
        parts = [results_text(self.results, width)]
        parts += [f"{name} failed: {reason}" for name, reason in self.outcome.failed.items()]
        parts += dict.fromkeys(failure.failure or "" for failure in self.results.failures if failure.damaged)
        if self.outcome.signal is not None:
            parts.append(f"Stopped with {len(self.outcome.left)} left; call it again to go on")
        elif not self.outcome.done and not self.outcome.failed:
            parts.append("Everything was there: nothing was run")
        return "\n".join([*parts, f"Tables: {self.folder / 'results.md'}, .csv, .tex"])


def run_ablation(config: AblateConfig, say: Callable[[str], None]) -> AblateReport:
    """Plan, run what is missing, write the tables. UsageError, one line, before anything runs where names are wrong."""
    study, source = load_study(config.study, config.overrides), str(config.study)
    folder = config.folder
    work = make_work(study, source)
    check_columns(study, work, source)
    plan = make_plan(study, work, folder)
    if config.dry_run:
        return AblateReport(plan, folder.root)
    say(plan.to_text())
    folder.make()
    with _held(folder.root, say) as lock:
        plan = make_plan(study, work, folder)  # what an earlier call left may have ended meanwhile
        outcome = JobsOutcome()
        if plan.pending:
            outcome = JobRunner(plan, folder, _job_settings(config, study, lock), say)()
        plan = make_plan(study, work, folder)
        results = collect(plan, folder, outcome.failed, study.title or config.study.stem)
        _write_results(results, folder.root)
    return AblateReport(plan, folder.root, outcome, results)


@contextmanager
def _held(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """One ablation at a time in a folder: its lock, as a file descriptor that stages inherit and so hold as well.

    Where it is held, by a living ablation or by stages of one that was killed, waits for a minute. SakError then.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        if not _is_locked(descriptor):
            say(f"{folder} is in use; waiting for what runs there to stop")
            while not _is_locked(descriptor):
                if time.monotonic() > deadline:
                    raise SakError(
                        f"{folder} is in use by another `sak-cli ablate` or by stages that one left; stop them, or "
                        "choose another --out"
                    )
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _job_settings(config: AblateConfig, study: Study, lock: int) -> JobSettings:
    """A stage at a time for each visible GPU, or one on the CPU, unless `--jobs` says otherwise."""
    device = resolve_device(config.device or study.device or DEVICE)
    gpus = visible_gpus() if device == "cuda" else ()
    jobs = config.jobs or max(1, len(gpus))
    return JobSettings(jobs, device, gpus, usable_cores(), config.program, lock)


def _write_results(results: Results, folder: Path) -> None:
    """`results.{csv,md,tex}`, `runs.csv`, and `results.svg` where the study asks for a plot."""
    files = {
        "results.csv": rows_csv(results),
        "runs.csv": runs_csv(results),
        "results.md": markdown(results),
        "results.tex": latex(results),
        "results.svg": plot_svg(results),
    }
    for name, text in files.items():
        if text is not None:
            replace_durably(folder / name, text.encode())
        else:
            (folder / name).unlink(missing_ok=True)  # an earlier study's
