"""A run's curves, its rep_sim and its routers' gates."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipeline.reporting.charts import Line, heat_map, line_chart
from pipeline.reporting.html import Markup, figure, joined, missing, number, section, table
from pipeline.reporting.runs import ReportedRun

_NAMED = 6


def curves(runs: Sequence[ReportedRun]) -> Markup:
    """Losses of all runs of a stage together, then each teacher's and task's."""
    parts: list[Markup | str] = []
    for stage in dict.fromkeys(run.stage for run in runs):
        mine = [run for run in runs if run.stage == stage and run.training]
        lines = [Line(run.name, _points(run.training, "loss")) for run in mine]
        chart = line_chart(lines, title=f"Training loss of {stage}", x="step", y="loss")
        if chart.text:
            parts.append(figure(chart, f"{stage}: the training loss over the steps, a line a run.{_what(mine)}"))
    parts += [each for run in runs for each in _parts_of_loss(run)]
    if not parts:
        parts.append(missing("No run has recorded a step yet."))
    return section("curves", "Training curves", Markup(f'<div class="grid">{joined(*_markup(parts)).text}</div>'))


def _what(runs: Sequence[ReportedRun]) -> str:
    """What stands in the way of comparing runs' losses: some of them hold a distillation loss, too."""
    both = [run.name for run in runs if run.dataset is not None and "distillation" in run.training[-1]]
    names = ", ".join(both) if len(both) <= _NAMED else f"{len(both)} of the {len(runs)} runs"
    some = f"That of {names} has the distillation loss in it, the others' only that of the tasks."
    return f" {some}" if both and len(both) < len(runs) else ""


def _markup(parts: Sequence[Markup | str]) -> list[Markup]:
    return [part if isinstance(part, Markup) else missing(part) for part in parts]


def _parts_of_loss(run: ReportedRun) -> list[Markup]:
    """What a run's loss is made of: teachers, the mean over their levels; tasks."""
    if not run.training:
        return []
    teachers = dict.fromkeys(name.split("/")[0] for name in run.training[-1] if "/level" in name)
    charts = []
    lines = [Line(teacher, _mean_points(run.training, f"{teacher}/level")) for teacher in teachers]
    chart = line_chart(lines, title=f"Distillation loss by teacher, {run.name}", x="step", y="mean loss per level")
    if chart.text:
        charts.append(figure(chart, f"{run.name}: the distillation loss of each teacher, the mean over its levels."))
    tasks = [name for name in run.training[-1] if name.startswith("task/")]
    lines = [Line(name.split("/", 1)[1], _points(run.training, name)) for name in tasks]
    chart = line_chart(lines, title=f"Loss by task, {run.name}", x="step", y="loss, unweighted")
    if chart.text:
        charts.append(
            figure(chart, f"{run.name}: each task's own loss, before the weights with which they are added up.")
        )
    return charts


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(line["step"]), float(line[name]))
        for line in lines
        if isinstance(line.get("step"), int) and isinstance(line.get(name), int | float)
    ]


def _mean_points(lines: Sequence[Mapping[str, Any]], prefix: str) -> list[tuple[float, float]]:
    points = []
    for line in lines:
        values = [value for name, value in line.items() if name.startswith(prefix) and isinstance(value, int | float)]
        if values and isinstance(line.get("step"), int):
            points.append((float(line["step"]), fmean(values)))
    return points


def similarity(runs: Sequence[ReportedRun]) -> Markup:
    """rep_sim: a table by teacher and level, and its course."""
    mine = [run for run in runs if any("rep_sim" in line for line in run.measured)]
    title = "How like its teachers the student is (rep_sim)"
    if not mine:
        return section("rep-sim", title, missing("Left out: no run measured rep_sim; give distill a --val-cache."))
    lines = [Line(run.name, _points(run.measured, "rep_sim")) for run in mine]
    chart = line_chart(lines, title="rep_sim over the steps", x="step", y="rep_sim", marks=True)
    note = (
        "rep_sim is the cosine of the student's whole feature map with the teacher's, on images that were held out: "
        "1 is the same map, 0 has nothing in common. The paper reaches 0.8708 with adapter paths and 0.3344 without, "
        "with its own teachers on ImageNet (Table 3)."
    )
    return section(
        "rep-sim",
        title,
        note,
        table(
            _similarity_rows(mine), caption="rep_sim at the last measurement, by teacher and level", left=("teacher",)
        ),
        figure(chart, "The mean over teachers and levels, a line a run."),
    )


def _similarity_rows(runs: Sequence[ReportedRun]) -> list[dict[str, object]]:
    found = []
    for run in runs:
        last = next(line for line in reversed(run.measured) if "rep_sim" in line)
        teachers = [name.split("/")[1] for name in last if name.startswith("rep_sim/") and name.count("/") == 1]
        for teacher in teachers:
            prefix = f"rep_sim/{teacher}/"
            levels = {
                name.removeprefix(prefix).replace("level", "level "): number(last[name])
                for name in last
                if name.startswith(prefix)
            }
            marked = f"{teacher} RANDOM" if teacher in run.random else teacher
            mean = number(last[f"rep_sim/{teacher}"])
            found.append({"run": run.name, "teacher": marked, "mean": mean, **levels})
    names = list(dict.fromkeys(name for row in found for name in row))
    return [{name: row.get(name, "-") for name in names} for row in found]


def gates(runs: Sequence[ReportedRun]) -> Markup:
    """A heat map a level, as the paper's Figure 4."""
    title = "Which expert each task listens to (gates)"
    mine = [(run, found) for run in runs if (found := run.gates) is not None]
    if not mine:
        return section("gates", title, missing("Left out: no run with routers was evaluated (sak-cli evaluate)."))
    note = (
        "Levels are blocks of the ViT, counted from the image. At each a router mixes, for every task anew, what the "
        "shared stem (TAS) and the adapter path of each teacher give. A row sums to 1: the task hears the expert with "
        "the largest number most. The paper's Figure 4, of its own teachers and data, has the stem and SAM in the lead "
        "at the lowest level and the teachers at the highest; a short training may look otherwise."
    )
    pictures = []
    for run, found in mine:
        for level, tasks in found.weights.items():
            name = f"{run.name}, level {level}"
            heat = heat_map(list(tasks), found.experts, list(tasks.values()), title=f"Gates of {name}")
            pictures.append(figure(heat, f"{name}: the mean gate over {found.images:,} images."))
    return section("gates", title, note, Markup(f'<div class="grid">{joined(*pictures).text}</div>'))
