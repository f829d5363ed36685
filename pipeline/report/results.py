"""What runs learnt: metrics beside baselines and the paper's numbers, rep_sim, gates, and the curves of training."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from statistics import fmean
from typing import Any

from pipeline.data.datasets import task_table
from pipeline.pictures.charts import Point
from pipeline.pictures.panel import title as task_title
from pipeline.report.charts import Chart, heat_map, line_chart, number, radar
from pipeline.report.runs import ReportedRun, mapping
from pipeline.tables import TABLES
from sak.errors import SakError
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset, Task

PAPER = {
    "pascal-context": {"multi-task baseline (paper, B)": ("table7", "multi-task baseline"),
                       "SAK (paper, B)": ("table7", "DINOv2+CLIP+SAM"), "SAK (paper, L)": ("table5", "SAK")},
    "nyud": {"single-task baseline (paper, L)": ("table6", "single-task baseline"),
             "SAK (paper, L)": ("table6", "SAK")},
}  # fmt: skip
MOST_SENTENCES = 8  # runs that a sentence each is written for; the table has all
MOST_NAMED = 6

Scores = Mapping[str, Mapping[str, float]]


def metrics(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """The results on each data set, and the runs that have none."""
    by_dataset: dict[str, list[ReportedRun]] = {}
    for run in runs:
        if run.dataset is not None and run.metrics:
            by_dataset.setdefault(run.dataset, []).append(run)
    missing = [run.name for run in runs if run.dataset is not None and not run.metrics]
    return {"missing": missing, "datasets": [_results(name, tuned) for name, tuned in by_dataset.items()]}


def _results(name: str, runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """A table, how runs stand to the baseline, and the radar of Figure 3."""
    try:
        dataset = task_table(name)
    except SakError as error:
        return {"problem": str(error)}
    scores = {_title(run): run.metrics for run in runs}
    trivial = {f"{run.name}: looks at no image": run.trivial for run in runs[:1] if run.trivial}
    # the demo's sets are other images: the paper's numbers do not belong beside them
    paper = {name: TABLES[table].rows[row] for name, (table, row) in PAPER.get(dataset.name, {}).items()}
    baselines = [run for kind in ("single-task", "multi-task") for run in runs if run.kind == kind]
    base = next((run for run in baselines if all(_is_base(run.metrics.get(task.name)) for task in dataset)), None)
    compared = [run for run in runs if run is not base]
    rows = [_row(name, values, dataset, _gain(values, dataset, base)) for name, values in (scores | trivial).items()]
    rows += [_row(name, values, dataset, values.get("delta_m")) for name, values in paper.items()]
    return {
        "name": dataset.name,
        "rows": rows,
        "best": _best(list(scores.values()), dataset),
        "kinds": [task.metric for task in dataset],
        "images": _images(runs),
        "mixed": len({_measured_on(run) for run in runs} - {None}) > 1,
        "baseline": base and _title(base),
        "no_baseline": baselines and _title(baselines[0]),
        "outcomes": [_outcome(run, dataset, base) for run in compared if base and len(compared) <= MOST_SENTENCES],
        "paper": bool(paper),
        "radar": _radar({**scores, **paper}, dataset),
    }


def _title(run: ReportedRun) -> str:
    """`name (kind)`, or the name where it says the kind."""
    return run.name if run.name == run.kind else f"{run.name} ({run.kind})"


def _outcome(run: ReportedRun, dataset: Dataset, base: ReportedRun) -> str:
    """A run against the baseline in one sentence."""
    gain = _gain(run.metrics, dataset, base)
    if gain is None or not isfinite(gain):
        return f"{_title(run)} was not measured on all tasks."
    pairs = [(task, run.metrics[task.name], base.metrics[task.name]) for task in dataset]
    better = sum((value < before) == task.lower_is_better for task, value, before in pairs if value != before)
    how = f"{number(abs(gain), 3)} % {'ahead of' if gain > 0 else 'behind'}" if gain else "level with"
    return f"{_title(run)} is {how} it, better at {better} of {len(dataset)} tasks."


def _is_base(value: float | None) -> bool:
    """Whether a gain over it exists."""
    return value is not None and isfinite(value) and value != 0


def _measured_on(run: ReportedRun) -> str | None:
    """The images of its evaluation, by the digest of their names; None where it does not say."""
    images = mapping(run.evaluation.get("of")).get("images")
    return images if isinstance(images, str) else None


def _images(runs: Sequence[ReportedRun]) -> int | None:
    """How many images were held out, where all say one number."""
    counts = [mapping(run.evaluation.get("evaluation")).get("images") for run in runs]
    return counts[0] if isinstance(counts[0], int) and all(count == counts[0] for count in counts) else None


def _heading(task: Task) -> str:
    return f"{task.name} {task.metric} {'↓' if task.lower_is_better else '↑'}"


def _row(name: str, values: Mapping[str, float], dataset: Dataset, gain: float | None) -> dict[str, str]:
    cells = {_heading(task): number(values.get(task.name)) for task in dataset}
    return {"": name, **cells, "delta_m % ↑": number(gain, 3)}


def _gain(values: Mapping[str, float], dataset: Dataset, base: ReportedRun | None) -> float | None:
    try:
        return delta_m(dataset, values, base.metrics).value if base is not None else None
    except SakError:
        return None


def _best(scores: Sequence[Mapping[str, float]], dataset: Dataset) -> dict[str, int]:
    """Heading -> the row of the best run, where there are several."""
    best = {}
    for task in dataset:
        have = [(values[task.name], row) for row, values in enumerate(scores) if isfinite(values.get(task.name, nan))]
        if len(have) > 1:
            best[_heading(task)] = (min(have) if task.lower_is_better else max(have))[1]
    return best


def _radar(scores: Scores, dataset: Dataset) -> Chart | None:
    """Every metric as a share of the best, errors by their inverse; None where runs or tasks are too few."""
    complete = {
        name: values for name, values in scores.items() if all(isfinite(values.get(task.name, nan)) for task in dataset)
    }
    if len(complete) < 2 or len(dataset) < 3:
        return None
    return radar(
        [task_title(task) for task in dataset],
        {name: [_share(values, task, complete) for task in dataset] for name, values in complete.items()},
        title=f"Metrics on {dataset.name} as shares of the best",
        caption=f"{dataset.name}: each task's metric as a share of the best run's (Figure 3), errors the other way "
        "round; outside is better. The rings divide the range that is written below in four.",
    )


def _share(values: Mapping[str, float], task: Task, scores: Scores) -> float:
    value, known = values[task.name], [run[task.name] for run in scores.values()]
    above, below = (min(known), value) if task.lower_is_better else (value, max(known))
    return above / below if below else 1.0


def curves(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Losses of all runs of a stage together, then each teacher's and task's."""
    charts = []
    for stage in dict.fromkeys(run.stage for run in runs):
        mine = [run for run in runs if run.stage == stage and run.training]
        lines = {run.name: _points(run.training, ["loss"]) for run in mine}
        caption = f"{stage}: the training loss over the steps, a line a run.{_not_comparable(mine)}"
        charts.append(line_chart(lines, title=f"Training loss of {stage}", caption=caption, y="loss"))
    charts += [chart for run in runs if run.training for chart in _parts_of_loss(run)]
    return [chart for chart in charts if chart is not None]


def _not_comparable(runs: Sequence[ReportedRun]) -> str:
    """What stands in the way of comparing runs' losses: some of them hold a distillation loss, too."""
    both = [run.name for run in runs if run.dataset is not None and "distillation" in run.training[-1]]
    names = ", ".join(both) if len(both) <= MOST_NAMED else f"{len(both)} of the {len(runs)} runs"
    some = f" That of {names} has the distillation loss in it, the others' only that of the tasks."
    return some if both and len(both) < len(runs) else ""


def _parts_of_loss(run: ReportedRun) -> list[Chart | None]:
    """What a run's loss is made of: teachers, the mean over their levels; tasks."""
    teachers: dict[str, list[str]] = {}
    for name in run.training[-1]:
        if "/level" in name:
            teachers.setdefault(name.split("/")[0], []).append(name)
    tasks = [name for name in run.training[-1] if name.startswith("task/")]
    return [
        line_chart(
            {teacher: _points(run.training, levels) for teacher, levels in teachers.items()},
            title=f"Distillation loss by teacher, {run.name}",
            caption=f"{run.name}: the distillation loss of each teacher, the mean over its levels.",
            y="mean loss per level",
        ),
        line_chart(
            {name.removeprefix("task/"): _points(run.training, [name]) for name in tasks},
            title=f"Loss by task, {run.name}",
            caption=f"{run.name}: each task's own loss, before the weights with which they are added up.",
            y="loss, unweighted",
        ),
    ]


def _points(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Point]:
    """(step, mean of what `names` were then); a line that lacks them is left out."""
    points = []
    for line in lines:
        values = [float(line[name]) for name in names if isinstance(line.get(name), int | float)]
        if values and isinstance(line.get("step"), int):
            points.append((float(line["step"]), fmean(values)))
    return points


def similarity(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """rep_sim: its rows by teacher and level, and its course."""
    mine = [run for run in runs if any("rep_sim" in line for line in run.measured)]
    rows = [row for run in mine for row in _similarity_rows(run)]
    names = dict.fromkeys(name for row in rows for name in row)
    chart = line_chart(
        {run.name: _points(run.measured, ["rep_sim"]) for run in mine},
        title="rep_sim over the steps",
        caption="The mean over teachers and levels, a line a run.",
        y="rep_sim",
        marks=True,
    )
    filled = [{name: row.get(name, "-") for name in names} for row in rows]
    return {"measured": bool(mine), "rows": filled, "chart": chart}


def _similarity_rows(run: ReportedRun) -> list[dict[str, str]]:
    """At the last measurement, a row a teacher."""
    last = next(line for line in reversed(run.measured) if "rep_sim" in line)
    teachers = [name.split("/")[1] for name in last if name.startswith("rep_sim/") and name.count("/") == 1]
    rows = []
    for teacher in teachers:
        prefix = f"rep_sim/{teacher}/"
        own = [name for name in last if name.startswith(prefix)]
        levels = {name.removeprefix(prefix).replace("level", "level "): number(last[name]) for name in own}
        mean = number(last[f"rep_sim/{teacher}"])
        rows.append({"run": run.name, "teacher": run.marked(teacher), "mean": mean, **levels})
    return rows


def gates(runs: Sequence[ReportedRun]) -> list[Chart]:
    """A heat map a level, as the paper's Figure 4."""
    return [
        heat_map(
            list(tasks),
            mean.experts,
            list(tasks.values()),
            title=f"Gates of {run.name}, level {level}",
            caption=f"{run.name}, level {level}: the mean gate over {mean.images:,} images.",
        )
        for run in runs
        if (mean := run.gates) is not None
        for level, tasks in mean.weights.items()
    ]
