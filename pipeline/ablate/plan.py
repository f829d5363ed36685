"""What a study will do, before anything runs: runs, the columns they read, what is missing, time and disk."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from pipeline.ablate.columns import ColumnState, column_states, free_space
from pipeline.ablate.folders import State, StudyFolder, last_lines, read_json
from pipeline.ablate.jobs import ExtractJob, StudyJob, StudyRun, TrainJob, Work
from pipeline.ablate.stage_settings import EvaluateSettings
from pipeline.ablate.study import STAGES, TRAINED, AssumedRates, Study
from pipeline.cache.folder import split_overlay
from pipeline.data.datasets import open_dataset
from pipeline.distill.stage import DistillConfig
from pipeline.finetune.stage import FinetuneConfig
from pipeline.progress import duration
from pipeline.tables import SCREEN, human_bytes, text_table
from pipeline.train.run import METRICS
from sak.errors import SakError

_TAIL_BYTES = 1 << 16  # of a run's measurements
_MARGIN = 1.05  # of a disk that is to take the columns


@dataclass(frozen=True)
class JobPlan:
    """One job: how far it is, its columns, how long all of it takes (None: not known) and what that rests on."""

    job: StudyJob
    state: State
    columns: tuple[ColumnState, ...]
    seconds: float | None
    basis: str | None


@dataclass(frozen=True)
class StudyPlan:
    """All jobs of a study, in an order in which they can run."""

    work: Work
    jobs: Mapping[str, JobPlan]
    study: Study

    @property
    def pending(self) -> tuple[JobPlan, ...]:
        """Jobs with something left to do."""
        return tuple(plan for plan in self.jobs.values() if plan.state is not State.DONE)

    @property
    def extractions(self) -> tuple[JobPlan, ...]:
        """Jobs that fill caches."""
        return tuple(plan for plan in self.jobs.values() if isinstance(plan.job, ExtractJob))

    @property
    def missing(self) -> tuple[ColumnState, ...]:
        """Columns that are not whole, each once."""
        return tuple(column for plan in self.extractions for column in plan.columns if not column.complete)

    def to_text(self) -> str:
        """For the screen."""
        return "\n\n".join([self._runs(), self._missing(), self._time()])

    def _runs(self) -> str:
        runs = self.work.runs
        stages = [stage for stage in STAGES if any(stage in run.jobs for run in runs)]
        rows = [
            {
                "row": run.row.name,
                "seed": str(run.seed),
                **{stage: self._stage(run.jobs.get(stage)) for stage in stages},
                "reads": self._read(run),
            }
            for run in runs
        ]
        trainings = len(self.jobs) - len(self.extractions)
        heading = f"{len(rows)} runs of {len({run.row.name for run in runs})} rows, {trainings} trainings in all"
        return f"{heading}\n{text_table(rows, width=SCREEN + 40, repeat=2)}"

    def _read(self, run: StudyRun) -> str:
        columns = [column for name in run.jobs.values() for column in self.jobs[name].columns]
        return " ".join(dict.fromkeys(map(_label, columns))) or "no cache"

    def _stage(self, name: str | None) -> str:
        return "-" if name is None else f"{name.rpartition('-')[2]} {self.jobs[name].state}"

    def _missing(self) -> str:
        if not self.missing:
            return "Every column is there: nothing is extracted" if self.extractions else "Nothing is extracted"
        rows = [
            {
                "missing column": _label(column),
                "cache": column.cache,
                "encoding": column.encoding,
                "there": f"{column.there:,}",
                "wanted": "after indexing" if column.wanted is None else f"{column.wanted:,}",
                "a view": human_bytes(column.bytes_per_image),
                "to write": "-" if column.missing_bytes is None else human_bytes(column.missing_bytes),
            }
            for column in self.missing
        ]
        caches = dict.fromkeys(column.cache for column in self.missing)
        disks = [_disk(cache, [column for column in self.missing if column.cache == cache]) for cache in caches]
        return "\n".join([text_table(rows), *disks])

    def _time(self) -> str:
        stages = dict.fromkeys(plan.job.stage for plan in self.pending)
        lines = [_stage_time(stage, [plan for plan in self.pending if plan.job.stage == stage]) for stage in stages]
        return "\n".join(lines) or "Nothing to do"


def _label(column: ColumnState) -> str:
    """A column's name with its key, or what is known of one that is not begun."""
    name = column.name or f"{column.teacher}-(new, {column.encoding})"
    return f"{name} RANDOM" if column.random else name


def _disk(cache: str, columns: Sequence[ColumnState]) -> str:
    """What is going to be written to a cache, and whether there is room."""
    sizes = [column.missing_bytes for column in columns if column.missing_bytes is not None]
    if len(sizes) < len(columns):
        return f"{cache}: how much it will take is known when its images are indexed"
    needed, free = sum(sizes), free_space(cache)
    room = "" if free is None else f", {human_bytes(free)} free"
    short = " - TOO LITTLE" if free is not None and free < needed * _MARGIN else ""
    return f"{cache}: {human_bytes(needed)} to write{room}{short}"


def _stage_time(stage: str, plans: Sequence[JobPlan]) -> str:
    """How long a stage's pending jobs take together."""
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    bases = ", ".join(dict.fromkeys(plan.basis for plan in plans if plan.basis))
    parts = [f"{stage}: {len(plans)} to do", *([duration(sum(known))] if known else [])]
    if len(known) < len(plans):
        parts.append(f"{len(plans) - len(known)} of unknown length")
    return ", ".join(parts) + (f" (by {bases})" if bases else "")


def make_plan(study: Study, work: Work, folder: StudyFolder) -> StudyPlan:
    """Compare what a study wants with what its caches and its folder hold. Nothing is written."""
    speeds = {stage: training_rate(stage, folder, study.rates) for stage in (*TRAINED, "evaluate")}
    jobs: dict[str, JobPlan] = {}
    for name, job in work.jobs.items():
        need = job.need if isinstance(job, ExtractJob) else job.reads
        columns = tuple(column_states(need)) if need is not None else ()
        state = _extraction_state(columns) if isinstance(job, ExtractJob) else folder.state(job)
        if state is State.DONE:
            jobs[name] = JobPlan(job, state, columns, 0.0, None)
            continue
        rate = extraction_rate(job, study.rates) if isinstance(job, ExtractJob) else speeds[job.stage]
        images = _images(job, columns, work)
        seconds = None if images is None or rate is None else images / rate.images_per_second
        jobs[name] = JobPlan(job, state, columns, seconds, rate.basis if rate and seconds else None)
    return StudyPlan(work, jobs, study)


def _extraction_state(columns: Sequence[ColumnState]) -> State:
    if all(column.complete for column in columns):
        return State.DONE
    return State.STARTED if any(column.there for column in columns) else State.NEW


def _images(job: StudyJob, columns: Sequence[ColumnState], work: Work) -> int | None:
    """Images that a job goes through; None where that is not known."""
    if isinstance(job, ExtractJob):
        missing = [column.missing for column in columns if column.missing is not None]
        return max(missing) if len(missing) == len(columns) else None
    asked, before = job.settings.checked, work.jobs.get(job.start or "")
    trained = before.settings.checked if isinstance(before, TrainJob) else None
    if isinstance(asked, EvaluateSettings) and isinstance(trained, FinetuneConfig):
        return _evaluation_images(asked, trained)
    return _training_images(job, columns)


def _evaluation_images(asked: EvaluateSettings, trained: FinetuneConfig) -> int | None:
    """None where the data is not at hand."""
    try:
        count = len(open_dataset(trained.dataset, trained.data, asked.split, trained.rows.names))
    except (SakError, OSError):
        return None
    return count if asked.limit is None else min(asked.limit, count)


def _training_images(job: TrainJob, columns: Iterable[ColumnState]) -> int | None:
    """None where a training's length is given in epochs of an unknown number of images."""
    config = job.settings.checked
    if not isinstance(config, DistillConfig | FinetuneConfig):
        return None
    training = config.recipe.training
    if training.steps is not None:
        return training.steps * training.batch_size
    samples = [column.wanted for column in columns if column.wanted is not None]
    views = job.reads.views if job.reads is not None else 1
    return None if not samples or training.epochs is None else round(training.epochs * max(samples) / views)


@dataclass(frozen=True)
class Rate:
    """Images a second, and where the number comes from."""

    images_per_second: float
    basis: str


def extraction_rate(job: ExtractJob, rates: AssumedRates) -> Rate | None:
    """From the reports that earlier extractions left in that cache, else as the study says; None: nobody knows."""
    try:
        reports = sorted(Path(split_overlay(job.need.cache)[0], "reports").glob("*.json"))
    except OSError:
        reports = []
    for path in reversed(reports):
        report = read_json(path)
        teachers = {name for block in report.get("blocks", ()) for name in block.get("teachers", ())}
        speed = report.get("images_per_second")
        if speed and job.need.spec is not None and teachers == set(job.need.spec.teachers):
            return Rate(float(speed), "the cache's last extraction")
    return _assumed("extract", rates)


def training_rate(stage: str, folder: StudyFolder, rates: AssumedRates) -> Rate | None:
    """The median over the study's own runs of that stage, else as the study says; None: nobody knows."""
    runs = sorted((folder.root / "runs").glob(f"{stage}-*"))
    measured = [speed for run in runs if (speed := run_speed(run))]
    if measured:
        return Rate(median(measured), f"{len(measured)} of the study's own runs")
    return _assumed(stage, rates)


def _assumed(stage: str, rates: AssumedRates) -> Rate | None:
    speed = getattr(rates, stage)
    return None if speed is None else Rate(speed, rates.basis)


def run_speed(run: Path) -> float | None:
    """Mean images a second of a run's last measurements; None where it has none."""
    path = run / METRICS
    lines = last_lines(path, _TAIL_BYTES) if path.is_file() else []
    speeds = [speed for line in lines if (speed := _speed(line))]
    return fmean(speeds) if speeds else None


def _speed(line: str) -> float | None:
    """Of one measurement; None where it has none, or is the end of a line that was cut."""
    try:
        measured = json.loads(line)
    except ValueError:
        return None
    speed = measured.get("images_per_second") if isinstance(measured, Mapping) else None
    return float(speed) if isinstance(speed, int | float) else None
