"""What a study found: mean and spread of every row over its seeds, gains over the baseline, oracles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

from pipeline.ablate.folders import State, StudyFolder, about
from pipeline.ablate.jobs import StudyRun, TrainJob, Work
from pipeline.ablate.plan import StudyPlan, run_speed
from pipeline.ablate.study import Study
from pipeline.finetune.stage import FinetuneConfig
from pipeline.train.run import RunDirectory, random_teachers
from sak.errors import UsageError, nearest
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset

# What one run of a study found: its numbers from its directory, the columns it read, or why there are none.

REP_SIM = "rep_sim"
BYTES = "bytes_per_image"
SPEED = "images_per_second"
HOURS = "hours"


@dataclass(frozen=True)
class RunResult:
    """One row under one seed. `keys` are the columns it read, `failure` why it has no numbers, or `damaged` ones."""

    row: str
    seed: int
    values: Mapping[str, float]
    keys: tuple[str, ...]
    runs: Mapping[str, str]
    failure: str | None = None
    random: bool = False
    damaged: bool = False


def read_result(run: StudyRun, plan: StudyPlan, folder: StudyFolder, failed: Mapping[str, str]) -> RunResult:
    """Read a run as it is now; `failed` says why jobs of this call did not end."""
    values: dict[str, float] = {}
    keys: dict[str, None] = {}
    failure, random, damaged = None, False, False
    for stage, name in run.jobs.items():
        told, job = about(folder.run(name)), plan.work.jobs[name]
        keys |= dict.fromkeys(_key(each) for each in (told.get("reads") or {}).get("columns", ()))
        random = random or bool(random_teachers(told))
        if not isinstance(job, TrainJob) or folder.state(job) is not State.DONE:
            failure = failure or failed.get(name) or f"{name} has not run to its end"
            continue
        place = folder.evaluation(job) if stage == "evaluate" else folder.run(name).root
        try:
            found = _evaluated(place) if stage == "evaluate" else _numbers(folder.run(name), told, tasks_of(job))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged = True
            failure = failure or f"{place} is damaged ({type(error).__name__}: {error}); remove it and call again"
            continue
        hours = values.get(HOURS, 0.0) + found.get(HOURS, 0.0)
        values |= found | ({HOURS: hours} if hours else {})
        if stage == "distill":
            values[BYTES] = _read_bytes(plan, name, tuple(keys))
    runs = {stage: str(folder.run(name).root) for stage, name in run.jobs.items()}
    return RunResult(run.row.name, run.seed, {} if failure else values, tuple(keys), runs, failure, random, damaged)


def _key(path: str) -> str:
    """`columns/<teacher>-<key>/<data>` by its name."""
    return path.split("/")[1] if path.count("/") else path


def _read_bytes(plan: StudyPlan, name: str, keys: Sequence[str]) -> float:
    """Bytes on disk of an image, of all views and columns that were read: none where all teachers ran live."""
    planned = plan.jobs[name]
    asked = planned.job.settings.flags.get("views") if isinstance(planned.job, TrainJob) else None
    columns = {
        column.name: column.bytes_per_image * (asked or column.views) for column in planned.columns if column.name
    }
    return sum(columns.get(key, 0.0) for key in keys)


def _numbers(directory: RunDirectory, told: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """rep_sim or the tasks' last measurements of a training, its speed, and the hours of its sessions.

    Hours of a row are those of all its trainings, also where other rows share them; speed is the last one's.
    """
    measured = [line for line in directory.metrics() if line.get("evaluation")]
    last = measured[-1] if measured else {}
    values = {name: last[name] for name in last if name.partition("/")[0] == REP_SIM and name.count("/") < 2}
    values |= {task: last[f"metric/{task}"] for task in tasks if f"metric/{task}" in last}
    speed, hours = run_speed(directory.root), _hours(told)
    return {**values, **({SPEED: speed} if speed else {}), **({HOURS: hours} if hours is not None else {})}


def tasks_of(job: TrainJob) -> tuple[str, ...]:
    """The tasks that a fine-tuning trains; none of another job."""
    settings = job.settings.checked
    return settings.rows.names if isinstance(settings, FinetuneConfig) else ()


def _evaluated(path: Path) -> dict[str, float]:
    """Task -> metric of a stored evaluation."""
    tasks = json.loads(path.read_text())["evaluation"]["tasks"]
    return {name: float(task["value"]) for name, task in tasks.items() if task["value"] is not None}


def _hours(told: Mapping[str, Any]) -> float | None:
    """Of all sessions that ended; None where the record does not say."""
    seconds = 0.0
    for session in told.get("sessions", ()):
        try:
            start, end = (datetime.strptime(session[name], "%Y-%m-%dT%H:%M:%S%z") for name in ("started", "ended"))
        except (KeyError, ValueError, TypeError):
            continue
        seconds += (end - start).total_seconds()
    return seconds / 3600 if seconds else None


GAIN = "delta_m"
BALANCE = "mu_over_sigma"


@dataclass(frozen=True)
class Spread:
    """Mean, and sample standard deviation where there are two seeds or more."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class RowResult:
    """One line of the table."""

    name: str
    series: str
    labels: Mapping[str, str]
    values: Mapping[str, Spread]
    keys: tuple[str, ...]
    runs: int
    planned: int
    random: bool


@dataclass(frozen=True)
class Results:
    """Everything that the tables show; `columns` in order, `notes` what a reader must know."""

    title: str
    rows: tuple[RowResult, ...]
    results: tuple[RunResult, ...]
    columns: tuple[str, ...]
    dataset: Dataset | None = None
    paper: str | None = None
    plot: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def failures(self) -> tuple[RunResult, ...]:
        """Runs without numbers."""
        return tuple(result for result in self.results if result.failure is not None)


def check_columns(study: Study, work: Work, source: str) -> None:
    """UsageError, before anything runs, where the table or the picture is to show what no run can have."""
    tasks = [task for job in work.jobs.values() if isinstance(job, TrainJob) for task in tasks_of(job)]
    known = list(dict.fromkeys((REP_SIM, *tasks, GAIN, BALANCE, BYTES, SPEED, HOURS)))
    asked = [(name, "columns", known) for name in study.columns or ()]
    if study.plot is not None and study.plot not in study.axes:
        asked.append((study.plot, "plot", [*known, *study.axes]))
    for name, where, names in asked:
        if name not in names and not name.startswith(f"{REP_SIM}/"):
            raise UsageError(f"{source}: {where}: there is no column {name!r}{nearest(name, names)}")


def collect(plan: StudyPlan, folder: StudyFolder, failed: Mapping[str, str], title: str) -> Results:
    """Read every run of a plan as it is now; `failed` says why jobs of this call did not end."""
    results = [read_result(run, plan, folder, failed) for run in plan.work.runs]
    dataset = _dataset(plan)
    notes: list[str] = []
    if dataset is not None and plan.study.baseline is not None:
        results = _with_gains(results, dataset, plan.study.baseline, notes)
    elif dataset is not None:
        notes.append("delta_m is left out: the study names no baseline row")
    if any(result.random for result in results):
        notes.append(
            "Teachers marked RANDOM have random weights: the table shows how the method runs, not what it gains"
        )
    rows = tuple(_row(name, plan, results) for name in dict.fromkeys(run.row.name for run in plan.work.runs))
    rows += tuple(_oracle(name, parts, rows, dataset) for name, parts in plan.study.oracles.items())
    have = {name for row in rows for name in row.values}
    asked = plan.study.columns or _columns(rows, dataset)
    columns = tuple(name for name in asked if name in have)
    lacking = [name for name in asked if name not in have]
    if lacking:
        notes.append(f"No run has {', '.join(lacking)}")
    return Results(title, rows, tuple(results), columns, dataset, plan.study.paper, plan.study.plot, tuple(notes))


def _dataset(plan: StudyPlan) -> Dataset | None:
    """The task table of the study's fine-tunings; None where it has none."""
    for job in plan.work.jobs.values():
        settings = job.settings.checked if isinstance(job, TrainJob) else None
        if isinstance(settings, FinetuneConfig):
            return settings.rows
    return None


def _with_gains(results: Sequence[RunResult], dataset: Dataset, baseline: str, notes: list[str]) -> list[RunResult]:
    """delta_m of every run over the baseline's mean over its seeds."""
    those = [result for result in results if result.row == baseline and result.failure is None]
    means = {
        task.name: fmean([each.values.get(task.name, nan) for each in those]) if those else nan for task in dataset
    }
    if not all(isfinite(value) and value != 0 for value in means.values()):
        notes.append(f"delta_m is left out: the baseline ({baseline}) lacks some task, or has 0 there")
        return list(results)
    notes.append(f"delta_m is over {baseline}, the mean of {_different(those)} seeds")
    return [_with_gain(each, dataset, means) for each in results]


def _with_gain(result: RunResult, dataset: Dataset, baseline: Mapping[str, float]) -> RunResult:
    scores = {task.name: result.values.get(task.name, nan) for task in dataset}
    if not all(isfinite(value) for value in scores.values()):
        return result
    gained = delta_m(dataset, scores, baseline)
    found = {GAIN: gained.value}
    spread_of_tasks = pstdev(gained.per_task.values())
    if spread_of_tasks > 0:
        found[BALANCE] = gained.value / spread_of_tasks
    return replace(result, values={**result.values, **found})


def _row(name: str, plan: StudyPlan, results: Sequence[RunResult]) -> RowResult:
    mine = [result for result in results if result.row == name]
    whole = [each for each in mine if each.failure is None]
    names = dict.fromkeys(value for each in whole for value in each.values)
    values = {value: over_seeds(whole, value) for value in names}
    row = next(run.row for run in plan.work.runs if run.row.name == name)
    keys = tuple(dict.fromkeys(key for each in mine for key in each.keys))
    random = any(each.random for each in mine)
    return RowResult(name, row.series, row.labels, values, keys, _different(whole), _different(mine), random)


def _different(results: Sequence[RunResult]) -> int:
    """Runs that differ: seeds that reach no stage of a row are one run."""
    return len({tuple(result.runs.values()) for result in results})


def over_seeds(results: Sequence[RunResult], name: str) -> Spread:
    """One value over a row's seeds, of each training once: a distillation that all seeds share has no spread."""
    distilled = name.partition("/")[0] in (REP_SIM, BYTES)
    trainings = {
        result.runs["distill"]
        if distilled and "distill" in result.runs
        else tuple(result.runs.values()): result.values[name]
        for result in results
        if name in result.values
    }
    return spread(list(trainings.values()))


def _oracle(name: str, parts: Sequence[str], rows: Sequence[RowResult], dataset: Dataset | None) -> RowResult:
    """The best of some rows for each task, by their means."""
    chosen = [row for row in rows if row.name in parts]
    values: dict[str, Spread] = {}
    for task in dataset or ():
        have = [row.values[task.name] for row in chosen if task.name in row.values]
        if len(have) == len(parts):
            values[task.name] = (min if task.lower_is_better else max)(have, key=lambda found: found.mean)
    keys = tuple(dict.fromkeys(key for row in chosen for key in row.keys))
    runs = min((row.runs for row in chosen), default=0)
    planned = max((row.planned for row in chosen), default=0)
    return RowResult(name, name, {}, values, keys, runs, planned, any(row.random for row in chosen))


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def _columns(rows: Sequence[RowResult], dataset: Dataset | None) -> tuple[str, ...]:
    """rep_sim, of all and by teacher; the tasks in the data set's order; delta_m; what it cost."""
    have = dict.fromkeys(name for row in rows for name in row.values)
    tasks = [task.name for task in dataset or ()]
    similar = [name for name in have if name.partition("/")[0] == REP_SIM]
    cost = [BYTES, SPEED, HOURS]
    return tuple(name for name in (*similar, *tasks, GAIN, *cost) if name in have)
