"""What a study will do, before anything runs: runs, the columns they read, what is missing, time and disk."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pipeline.ablate.columns import ColumnState, column_states, free_space
from pipeline.ablate.folders import State, StudyFolder
from pipeline.ablate.jobs import ExtractJob, Job, TrainJob, Work
from pipeline.ablate.stage_settings import EvaluateSettings
from pipeline.ablate.study import STAGES, TRAINED, AssumedRates, Study
from pipeline.cache.folder import split_overlay
from pipeline.data.datasets import open_dataset
from pipeline.finetune.stage import FinetuneConfig
from pipeline.progress import duration
from pipeline.tables import SCREEN, human_bytes, text_table
from pipeline.train.config import TrainingConfig
from sak.errors import SakError

# How long the missing work of a study takes: images over a rate, measured where there is anything to go by.

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Rate:
    """Images a second, and where the number comes from."""

    images_per_second: float
    basis: str


def extraction_rate(job: ExtractJob, rates: AssumedRates) -> Rate | None:
    """From the reports that earlier extractions left in that cache, else as the study says; None: nobody knows."""
    try:
        folder = Path(split_overlay(job.need.cache)[0]) / "reports"
        reports = sorted(folder.glob("*.json"))
    except OSError:
        reports = []
    for report in reversed(reports):
        found = _json(report)
        teachers = {name for block in found.get("blocks", ()) for name in block.get("teachers", ())}
        if found.get("images_per_second") and job.need.spec is not None and teachers == set(job.need.spec.teachers):
            return Rate(float(found["images_per_second"]), "the cache's last extraction")
    return None if rates.extract is None else Rate(rates.extract, rates.basis)


def training_rate(stage: str, folder: StudyFolder, rates: AssumedRates) -> Rate | None:
    """The median over the study's own runs of that stage, else as the study says; None: nobody knows."""
    measured = [speed for run in sorted((folder.root / "runs").glob(f"{stage}-*")) if (speed := run_speed(run))]
    if measured:
        return Rate(median(measured), f"{len(measured)} of the study's own runs")
    said = getattr(rates, stage, None)
    return None if said is None else Rate(said, rates.basis)


def run_speed(run: Path) -> float | None:
    """Mean images a second of a run's last measurements; None where it has none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    values = [found for line in lines if (found := _value(line, "images_per_second"))]
    return fmean(values) if values else None


def training_images(job: TrainJob, states: Iterable[ColumnState]) -> int | None:
    """Images that a training goes through; None where its length in images is not known."""
    training: Any = getattr(job.settings.checked, "recipe", None)
    training = getattr(training, "training", None)
    if not isinstance(training, TrainingConfig):
        return None
    if training.steps is not None:
        return training.steps * training.batch_size
    samples = [state.wanted for state in states if state.wanted is not None]
    views = job.reads.views if job.reads is not None else 1
    return None if not samples or training.epochs is None else round(training.epochs * max(samples) / views)


def evaluation_images(asked: EvaluateSettings, trained: FinetuneConfig) -> int | None:
    """Images that an evaluation looks at; None where the data is not at hand."""
    try:
        count = len(open_dataset(trained.dataset, trained.data, asked.split, trained.rows.names))
    except (SakError, OSError):
        return None
    return count if asked.limit is None else min(asked.limit, count)


def seconds(images: int | None, rate: Rate | None) -> float | None:
    """How long; None where either is not known."""
    return None if images is None or rate is None else images / rate.images_per_second


def _value(line: str, name: str) -> float | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    value = found.get(name) if isinstance(found, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_ROOM = 1.05  # of a disk that is to take the columns


@dataclass(frozen=True)
class JobPlan:
    """One job: how far it is, its columns, how long all of it takes (None: not known) and what that rests on."""

    job: Job
    state: State
    columns: tuple[ColumnState, ...]
    seconds: float | None
    basis: str | None

    @property
    def to_do(self) -> bool:
        """Whether anything is left."""
        return self.state is not State.DONE


@dataclass(frozen=True)
class StudyPlan:
    """All jobs of a study, in an order in which they can run."""

    work: Work
    jobs: Mapping[str, JobPlan]
    study: Study

    @property
    def pending(self) -> tuple[JobPlan, ...]:
        """Jobs with something left to do."""
        return tuple(job for job in self.jobs.values() if job.to_do)

    @property
    def missing(self) -> tuple[ColumnState, ...]:
        """Columns that are not whole, each once."""
        columns = [
            column
            for job in self.jobs.values()
            if isinstance(job.job, ExtractJob)
            for column in job.columns
            if not column.complete
        ]
        return tuple(columns)

    def to_text(self) -> str:
        """For the screen."""
        parts = [self._runs(), self._missing(), self._time()]
        return "\n\n".join(part for part in parts if part)

    def _runs(self) -> str:
        rows = []
        for run in self.work.runs:
            reads = [self.jobs[name] for name in run.jobs.values()]
            columns = dict.fromkeys(
                _called(column) for read in reads if read.job.stage in TRAINED for column in read.columns
            )
            rows.append(
                {
                    "row": run.row.name,
                    "seed": str(run.seed),
                    **{stage: self._stage(run.jobs.get(stage)) for stage in self._stages()},
                    "reads": " ".join(columns) or "no cache",
                }
            )
        count = sum(isinstance(job.job, TrainJob) for job in self.jobs.values())
        heading = f"{len(rows)} runs of {len({run.row.name for run in self.work.runs})} rows, {count} trainings in all"
        return f"{heading}\n{text_table(rows, width=SCREEN + 40, repeat=2)}"

    def _stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if any(stage in run.jobs for run in self.work.runs))

    def _stage(self, name: str | None) -> str:
        if name is None:
            return "-"
        return f"{name.rpartition('-')[2]} {self.jobs[name].state}"

    def _missing(self) -> str:
        if not self.missing:
            there = [job for job in self.jobs.values() if isinstance(job.job, ExtractJob)]
            return "Every column is there: nothing is extracted" if there else "Nothing is extracted"
        rows = [
            {
                "missing column": _called(column),
                "cache": column.cache,
                "encoding": column.encoding,
                "there": f"{column.there:,}",
                "wanted": "after indexing" if column.wanted is None else f"{column.wanted:,}",
                "a view": human_bytes(column.bytes_per_image),
                "to write": "-" if column.missing_bytes is None else human_bytes(column.missing_bytes),
            }
            for column in self.missing
        ]
        return "\n".join([text_table(rows), *self._disks()])

    def _disks(self) -> list[str]:
        lines = []
        for cache in dict.fromkeys(column.cache for column in self.missing):
            sizes = [column.missing_bytes for column in self.missing if column.cache == cache]
            if None in sizes:
                lines.append(f"{cache}: how much it will take is known when its images are indexed")
                continue
            needed, free = sum(size for size in sizes if size is not None), free_space(cache)
            room = "" if free is None else f", {human_bytes(free)} free"
            short = " - TOO LITTLE" if free is not None and free < needed * _ROOM else ""
            lines.append(f"{cache}: {human_bytes(needed)} to write{room}{short}")
        return lines

    def _time(self) -> str:
        if not self.pending:
            return "Nothing to do"
        lines = []
        for stage in dict.fromkeys(each.job.stage for each in self.pending):
            mine = [each for each in self.pending if each.job.stage == stage]
            known = [each.seconds for each in mine if each.seconds is not None]
            bases = ", ".join(dict.fromkeys(each.basis for each in mine if each.basis))
            unknown = len(mine) - len(known)
            told = [duration(sum(known))] if known else []
            told += [f"{unknown} of unknown length"] if unknown else []
            lines.append(f"{stage}: {len(mine)} to do, {', '.join(told)}" + (f" (by {bases})" if bases else ""))
        return "\n".join(lines)


def make_plan(study: Study, work: Work, folder: StudyFolder) -> StudyPlan:
    """Compare what a study wants with what its caches and its folder hold. Nothing is written."""
    jobs: dict[str, JobPlan] = {}
    speeds = {stage: training_rate(stage, folder, study.rates) for stage in (*TRAINED, "evaluate")}
    for name, job in work.jobs.items():
        if isinstance(job, ExtractJob):
            jobs[name] = _extraction(job, study)
        else:
            jobs[name] = _training(job, folder, speeds[job.stage], work)
    return StudyPlan(work, jobs, study)


def _extraction(job: ExtractJob, study: Study) -> JobPlan:
    columns = tuple(column_states(job.need))
    if all(column.complete for column in columns):
        return JobPlan(job, State.DONE, columns, 0.0, None)
    rate = extraction_rate(job, study.rates)
    begun = any(column.there for column in columns)
    missing = [column.missing for column in columns]
    images = None if None in missing else max(each or 0 for each in missing)
    needed = seconds(images, rate)
    return JobPlan(job, State.STARTED if begun else State.NEW, columns, needed, rate.basis if rate and needed else None)


def _training(job: TrainJob, folder: StudyFolder, rate: Rate | None, work: Work) -> JobPlan:
    columns = tuple(column_states(job.reads)) if job.reads is not None else ()
    state = folder.state(job)
    if state is State.DONE:
        return JobPlan(job, state, columns, 0.0, None)
    needed = seconds(_images(job, columns, work), rate)
    return JobPlan(job, state, columns, needed, rate.basis if rate and needed else None)


def _images(job: TrainJob, columns: tuple[ColumnState, ...], work: Work) -> int | None:
    asked, of = job.settings.checked, work.jobs.get(job.start or "")
    trained = of.settings.checked if isinstance(of, TrainJob) else None
    if isinstance(asked, EvaluateSettings) and isinstance(trained, FinetuneConfig):
        return evaluation_images(asked, trained)
    return training_images(job, columns)


def _called(column: ColumnState) -> str:
    """A column's name with its key, or what is known of one that is not begun."""
    name = column.name or f"{column.teacher}-(new, {column.encoding})"
    return f"{name} RANDOM" if column.random else name
