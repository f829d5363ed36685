"""What a study found: mean and spread of every row over its seeds, gains over the baseline, oracles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from statistics import fmean, pstdev, stdev

from pipeline.ablation.folders import StudyFolder
from pipeline.ablation.jobs import TrainJob, Work
from pipeline.ablation.plan import StudyPlan
from pipeline.ablation.run_results import BYTES, HOURS, REP_SIM, SPEED, RunResult, read_result, tasks_of
from pipeline.ablation.study import Study
from pipeline.finetune import FinetuneConfig
from sak.errors import UsageError, nearest
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset

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
        return tuple(each for each in self.results if each.failure is not None)


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
    if any(each.random for each in results):
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
    those = [each for each in results if each.row == baseline and each.failure is None]
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
    mine = [each for each in results if each.row == name]
    whole = [each for each in mine if each.failure is None]
    names = dict.fromkeys(value for each in whole for value in each.values)
    values = {value: over_seeds(whole, value) for value in names}
    row = next(run.row for run in plan.work.runs if run.row.name == name)
    keys = tuple(dict.fromkeys(key for each in mine for key in each.keys))
    random = any(each.random for each in mine)
    return RowResult(name, row.series, row.labels, values, keys, _different(whole), _different(mine), random)


def _different(results: Sequence[RunResult]) -> int:
    """Runs that differ: seeds that reach no stage of a row are one run."""
    return len({tuple(each.runs.values()) for each in results})


def over_seeds(results: Sequence[RunResult], name: str) -> Spread:
    """One value over a row's seeds, of each training once: a distillation that all seeds share has no spread."""
    distilled = name.partition("/")[0] in (REP_SIM, BYTES)
    trainings = {
        each.runs["distill"] if distilled and "distill" in each.runs else tuple(each.runs.values()): each.values[name]
        for each in results
        if name in each.values
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
