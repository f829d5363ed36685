"""What was run with what, its curves, rep_sim and the routers' gates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.reporting.charts import Line, heat_map, line_chart
from pipeline.reporting.html import Markup, escape, figure, joined, missing, number, section, table
from pipeline.reporting.runs import ReportedRun
from pipeline.training.run import differences

_SHOWN_SETTINGS = 60
_NAMED = 6
IMAGENET, TEACHER, TEACHERS, RANDOM = "imagenet", "teacher:", "teachers:", "random:"  # what --init says of no run


def overview(runs: Sequence[ReportedRun]) -> Markup:
    """A line a run."""
    rows = [
        {
            "run": run.name,
            "stage": run.stage,
            "kind": run.kind,
            "starts from": _start(run, runs),
            "trained on": _data(run),
            "teachers": _teachers(run),
            "student": _student(run),
            "steps": _steps(run),
            "state": _state(run),
            "images/s": number(_speed(run), 3),
            "hardware": _hardware(run),
        }
        for run in runs
    ]
    left = ("stage", "kind", "starts from", "trained on", "teachers", "student", "state", "hardware")
    parts: list[Markup | str] = [table(rows, caption="The runs of this report", left=left)]
    random = sorted({name for run in runs for name in run.random})
    if random:
        parts.append(
            missing(
                f"RANDOM weights: {', '.join(random)}. Such teachers know nothing: these runs show that everything "
                "works, not what the method gains."
            )
        )
    parts += [missing(f"{run.name}: {problem}") for run in runs for problem in run.problems]
    settings = f"<details><summary>Settings of every run</summary>{_settings(runs).text}</details>"
    return section("runs", "What was run with what", *parts, Markup(settings))


def _settings(runs: Sequence[ReportedRun]) -> Markup:
    """Settings by run: all of the first, then what differs."""
    parts = []
    for run in runs:
        flat = list(_flat(run.config))
        base = next((each for each in runs if each.stage == run.stage), run)
        if base is not run:
            flat = [(name, now) for name, _, now in differences(base.config, run.config)]
        rows = [{"setting": name, "value": _short(value)} for name, value in flat[:_SHOWN_SETTINGS]]
        title = f"{run.name}: all settings" if base is run else f"{run.name}: what differs from {base.name}"
        shown = table(rows, caption=title, left=("value",)) if rows else missing("Nothing differs.")
        parts.append(Markup(f"<details><summary>{escape(title)}</summary>{shown.text}</details>"))
    return joined(*parts)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in config.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else None
        flat += inner if inner is not None else [(f"{prefix}{name}", value)]
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _start(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """The run of this page whose weights it took; else what its settings say."""
    init = run.config.get("init")
    if not isinstance(init, str) or init == IMAGENET:
        recipe = run.config.get("recipe")
        student = recipe.get("student") if isinstance(recipe, Mapping) else None
        return str(student.get("weights") or "-") if isinstance(student, Mapping) else "-"
    if init.startswith((TEACHER, TEACHERS, RANDOM)):
        return init
    path = Path(init)
    path = path.parents[1] if path.parent.name == "checkpoints" else path
    others = [each for each in runs if each is not run and each.stage == "distill"]
    beside = [each for each in others if each.place.resolve().parent == run.place.resolve().parent]
    for some, moved in ((others, False), (beside, True)):
        same = [each.name for each in some if _is_at(each, path, moved=moved)]
        if len(same) == 1:
            return same[0]
    return path.name or init


def _is_at(run: ReportedRun, path: Path, *, moved: bool) -> bool:
    """Whether a run is the one at `path`; `moved`: it may lie elsewhere by now, with the run that names it."""
    place = run.place.resolve().parts
    if path.is_absolute() and (not moved or _is_there(path)):
        return place == path.parts
    last = path.parts[-2:] if moved else path.parts
    return len(last) >= (1 if moved else 2) and place[-len(last) :] == last


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _data(run: ReportedRun) -> str:
    if run.dataset is not None:
        count = run.reads.get("images")
        return f"{run.dataset}, {count} images" if count is not None else run.dataset
    samples = run.reads.get("samples")
    count = f"{samples[0]:,} images" if isinstance(samples, list) and samples and isinstance(samples[0], int) else "?"
    views = run.reads.get("views")
    return f"cache, {count}, {views} view{'' if views == 1 else 's'}" if views is not None else "?"


def _teachers(run: ReportedRun) -> str:
    student = run.about.get("student")
    found = run.about.get("teachers") or (student.get("teachers") if isinstance(student, Mapping) else None)
    told = found if isinstance(found, list | Mapping) else []
    names = [each[0] if isinstance(each, list) and each else each for each in told]  # pairs, or names
    return ", ".join(_teacher(run, str(name)) for name in names) or "none"


def _teacher(run: ReportedRun, name: str) -> str:
    """`clip (demo/clip)`, where the run knows the model, and RANDOM where its weights are."""
    places = (run.reads.get("live"), run.about.get("teachers"))
    told = [each.get(name) for each in places if isinstance(each, Mapping)]
    model = next((each["model"] for each in told if isinstance(each, Mapping) and each.get("model")), None)
    return f"{name}{f' ({model})' if model else ''}{' RANDOM' if name in run.random else ''}"


def _student(run: ReportedRun) -> str:
    student = run.about.get("student")
    if not isinstance(student, Mapping):
        return "frozen teacher" if run.about.get("probe") else "-"
    stem = student.get("stem")
    if isinstance(stem, Mapping):
        stem = f"ViT {stem.get('width', '?')} wide, {stem.get('depth', '?')} deep"
    return f"{stem}{'' if student.get('adapters', True) else ', no adapter paths'}"


def _steps(run: ReportedRun) -> str:
    steps = [line["step"] for line in run.lines if isinstance(line.get("step"), int)]
    return f"{max(steps):,}" if steps else "-"


def _sessions(run: ReportedRun) -> list[Mapping[str, Any]]:
    found = run.about.get("sessions")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _state(run: ReportedRun) -> str:
    sessions = _sessions(run)
    if not sessions or "ended" not in sessions[-1]:
        return "not ended"
    sitting = "" if len(sessions) == 1 else f", {len(sessions)} sessions"
    return ("stopped" if sessions[-1].get("stopped") else "done") + sitting


def _speed(run: ReportedRun) -> float | None:
    found = [line["images_per_second"] for line in run.training if isinstance(line.get("images_per_second"), float)]
    return fmean(found) if found else None


def _hardware(run: ReportedRun) -> str:
    sessions = _sessions(run)
    if not sessions:
        return "-"
    packages = sessions[-1].get("packages")
    torch = packages.get("torch", "?") if isinstance(packages, Mapping) else "?"
    return f"{run.config.get('device', '?')}, torch {torch}"


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
