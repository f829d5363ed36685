"""What a study found: mean and spread of every row over its seeds, gains over the baseline, oracles."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

from pipeline.ablate.folders import State, StudyFolder, about
from pipeline.ablate.jobs import StudyJob, StudyRun, TrainJob, Work
from pipeline.ablate.plan import StudyPlan, run_speed
from pipeline.ablate.study import Study, StudyRow
from pipeline.finetune.stage import FinetuneConfig
from pipeline.train.run import RunDirectory, random_teachers
from sak.errors import UsageError, nearest
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset

REP_SIM = "rep_sim"
BYTES = "bytes_per_image"
SPEED = "images_per_second"
HOURS = "hours"
GAIN = "delta_m"
BALANCE = "mu_over_sigma"


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


@dataclass(frozen=True)
class Spread:
    """Mean, and sample standard deviation where there are two seeds or more."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class RowResult:
    """One line of the table: `runs` of the `planned` ones have numbers."""

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
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[RunResult, ...]:
        """Runs without numbers."""
        return tuple(result for result in self.results if result.failure is not None)


def check_columns(study: Study, work: Work, source: str) -> None:
    """UsageError, before anything runs, where the table or the picture is to show what no run can have."""
    tasks = [task for job in work.jobs.values() for task in _tasks(job)]
    known = list(dict.fromkeys((REP_SIM, *tasks, GAIN, BALANCE, BYTES, SPEED, HOURS)))
    asked = [(name, "columns", known) for name in study.columns or ()]
    if study.plot is not None:
        asked.append((study.plot, "plot", [*known, *study.axes]))
    for name, setting, names in asked:
        if name not in names and not name.startswith(f"{REP_SIM}/"):
            raise UsageError(f"{source}: {setting}: there is no column {name!r}{nearest(name, names)}")


def collect(plan: StudyPlan, folder: StudyFolder, failed: Mapping[str, str], title: str) -> Results:
    """Read every run of a plan as it is now; `failed` says why jobs of this call did not end."""
    study, dataset = plan.study, _dataset(plan.work)
    results = [_read_run(run, plan, folder, failed) for run in plan.work.runs]
    notes: list[str] = []
    if dataset is not None and study.baseline is not None:
        results = _with_gains(results, dataset, study.baseline, notes)
    elif dataset is not None:
        notes.append("delta_m is left out: the study names no baseline row")
    if any(result.random for result in results):
        notes.append(
            "Teachers marked RANDOM have random weights: the table shows how the method runs, not what it gains"
        )
    rows = [_row(row, results) for row in {run.row.name: run.row for run in plan.work.runs}.values()]
    rows += [
        _oracle(name, [row for row in rows if row.name in parts], dataset) for name, parts in study.oracles.items()
    ]
    have = dict.fromkeys(name for row in rows for name in row.values)
    asked = study.columns or _default_columns(have, dataset)
    lacking = [name for name in asked if name not in have]
    if lacking:
        notes.append(f"No run has {', '.join(lacking)}")
    columns = tuple(name for name in asked if name in have)
    return Results(title, tuple(rows), tuple(results), columns, dataset, study.paper, study.plot, tuple(notes))


def _tasks(job: StudyJob) -> tuple[str, ...]:
    """The tasks that a fine-tuning trains; none of another job."""
    settings = job.settings.checked if isinstance(job, TrainJob) else None
    return settings.rows.names if isinstance(settings, FinetuneConfig) else ()


def _dataset(work: Work) -> Dataset | None:
    """The task table of the study's fine-tunings; None where it has none."""
    checked = (job.settings.checked for job in work.jobs.values() if isinstance(job, TrainJob))
    return next((config.rows for config in checked if isinstance(config, FinetuneConfig)), None)


def _read_run(run: StudyRun, plan: StudyPlan, folder: StudyFolder, failed: Mapping[str, str]) -> RunResult:
    """Its numbers from the directories of its jobs, the columns it read, or why there are none."""
    values: dict[str, float] = {}
    keys: dict[str, None] = {}
    failure, random, damaged = None, False, False
    for stage, name in run.jobs.items():
        record, job = about(folder.run(name)), plan.work.jobs[name]
        keys |= dict.fromkeys(_key(column) for column in (record.get("reads") or {}).get("columns", ()))
        random = random or bool(random_teachers(record))
        if not isinstance(job, TrainJob) or folder.state(job) is not State.DONE:
            failure = failure or failed.get(name) or f"{name} has not run to its end"
            continue
        path = folder.evaluation(job) if stage == "evaluate" else folder.run(name).root
        try:
            numbers = _evaluated(path) if stage == "evaluate" else _trained(folder.run(name), record, _tasks(job))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged = True
            failure = failure or f"{path} is damaged ({type(error).__name__}: {error}); remove it and call again"
            continue
        hours = values.get(HOURS, 0.0) + numbers.get(HOURS, 0.0)
        values |= numbers | ({HOURS: hours} if hours else {})
        if stage == "distill":
            values[BYTES] = _read_bytes(plan, name, tuple(keys))
    runs = {stage: str(folder.run(name).root) for stage, name in run.jobs.items()}
    return RunResult(run.row.name, run.seed, {} if failure else values, tuple(keys), runs, failure, random, damaged)


def _key(path: str) -> str:
    """`columns/<teacher>-<key>/<data>` by its name."""
    return path.split("/")[1] if "/" in path else path


def _read_bytes(plan: StudyPlan, name: str, keys: Sequence[str]) -> float:
    """Bytes on disk of an image, of all views and columns that were read: none where all teachers ran live."""
    planned = plan.jobs[name]
    views = planned.job.settings.flags.get("views") if isinstance(planned.job, TrainJob) else None
    sizes = {column.name: column.bytes_per_image * (views or column.views) for column in planned.columns}
    return sum(sizes.get(key, 0.0) for key in keys)


def _trained(directory: RunDirectory, record: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """rep_sim or the tasks' last measurements of a training, its speed, and the hours of its sessions.

    Hours of a row are those of all its trainings, also where other rows share them; speed is the last one's.
    """
    measured = [line for line in directory.metrics() if line.get("evaluation")]
    last = measured[-1] if measured else {}
    values = {name: last[name] for name in last if name.partition("/")[0] == REP_SIM and name.count("/") < 2}
    values |= {task: last[f"metric/{task}"] for task in tasks if f"metric/{task}" in last}
    cost = {SPEED: run_speed(directory.root), HOURS: _hours(record)}
    return values | {name: value for name, value in cost.items() if value}


def _evaluated(path: Path) -> dict[str, float]:
    """Task -> metric of a stored evaluation."""
    tasks = json.loads(path.read_text())["evaluation"]["tasks"]
    return {name: float(task["value"]) for name, task in tasks.items() if task["value"] is not None}


def _hours(record: Mapping[str, Any]) -> float:
    """Of all sessions that ended; 0 where the record does not say."""
    seconds = 0.0
    for session in record.get("sessions", ()):
        try:
            start, end = (datetime.strptime(session[name], "%Y-%m-%dT%H:%M:%S%z") for name in ("started", "ended"))
        except (KeyError, ValueError, TypeError):
            continue
        seconds += (end - start).total_seconds()
    return seconds / 3600


def _with_gains(results: list[RunResult], dataset: Dataset, baseline: str, notes: list[str]) -> list[RunResult]:
    """delta_m of every run over the baseline's mean over its seeds."""
    runs = [result for result in results if result.row == baseline and result.failure is None]
    means = {task.name: fmean([run.values.get(task.name, nan) for run in runs]) if runs else nan for task in dataset}
    if not all(isfinite(value) and value != 0 for value in means.values()):
        notes.append(f"delta_m is left out: the baseline ({baseline}) lacks some task, or has 0 there")
        return results
    notes.append(f"delta_m is over {baseline}, the mean of {_different(runs)} seeds")
    return [replace(result, values={**result.values, **_gains(result, dataset, means)}) for result in results]


def _gains(result: RunResult, dataset: Dataset, baseline: Mapping[str, float]) -> dict[str, float]:
    """delta_m and its balance over the tasks, as far as there are such."""
    if not all(isfinite(result.values.get(task.name, nan)) for task in dataset):
        return {}
    gained = delta_m(dataset, result.values, baseline)
    deviation = pstdev(gained.per_task.values())
    return {GAIN: gained.value, **({BALANCE: gained.value / deviation} if deviation > 0 else {})}


def _row(row: StudyRow, results: Sequence[RunResult]) -> RowResult:
    """A row over its seeds."""
    planned = [result for result in results if result.row == row.name]
    runs = [result for result in planned if result.failure is None]
    values = {name: over_seeds(runs, name) for name in dict.fromkeys(name for run in runs for name in run.values)}
    counts = _different(runs), _different(planned)
    return RowResult(
        row.name, row.series, row.labels, values, _keys(planned), *counts, any(run.random for run in planned)
    )


def _keys(results: Sequence[RunResult | RowResult]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for result in results for key in result.keys))


def _different(results: Sequence[RunResult]) -> int:
    """Runs that differ: seeds that reach no stage of a row are one run."""
    return len({tuple(result.runs.values()) for result in results})


def over_seeds(results: Sequence[RunResult], name: str) -> Spread:
    """One value over a row's seeds, of each training once: a distillation that all seeds share has no spread."""
    of_distillation = name.partition("/")[0] in (REP_SIM, BYTES)
    trainings: dict[object, float] = {}
    for result in results:
        if name in result.values:
            distillation = result.runs.get("distill") if of_distillation else None
            trainings[distillation or tuple(result.runs.values())] = result.values[name]
    return spread(list(trainings.values()))


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _oracle(name: str, rows: Sequence[RowResult], dataset: Dataset | None) -> RowResult:
    """The best of some rows for each task, by their means."""
    values: dict[str, Spread] = {}
    for task in dataset or ():
        if all(task.name in row.values for row in rows):
            best = min if task.lower_is_better else max
            values[task.name] = best((row.values[task.name] for row in rows), key=lambda value: value.mean)
    runs, planned = min(row.runs for row in rows), max(row.planned for row in rows)
    return RowResult(name, name, {}, values, _keys(rows), runs, planned, any(row.random for row in rows))


def _default_columns(have: Collection[str], dataset: Dataset | None) -> tuple[str, ...]:
    """rep_sim, of all and by teacher; the tasks in the data set's order; delta_m; what it cost."""
    similar = [name for name in have if name.partition("/")[0] == REP_SIM]
    tasks = [task.name for task in dataset or ()]
    return tuple(name for name in (*similar, *tasks, GAIN, BYTES, SPEED, HOURS) if name in have)
