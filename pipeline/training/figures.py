"""Pictures of a run, drawn from its `metrics.jsonl`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.training.run import RunDirectory

Lines = Sequence[Mapping[str, Any]]
COLOURS = ("#1d4ed8", "#b91c1c", "#15803d", "#a16207", "#7e22ce", "#0e7490", "#be185d")


def draw_distillation(run: RunDirectory) -> list[Path]:
    """`losses.png`, `rep_sim.png` (where it was measured) and `speed.png`; returns what was drawn."""
    lines = run.metrics()
    reads = run.about().get("reads", {})
    random = frozenset(reads.get("random", ()))
    training = [line for line in lines if not line.get("evaluation")]
    measured = [line for line in lines if line.get("evaluation")]
    drawn = []
    if training:
        drawn += [_losses(training, random, run.figures / "losses.png"), _speed(training, run.figures / "speed.png")]
    if measured:
        drawn.append(_rep_sim(measured, random, run.figures / "rep_sim.png"))
    return drawn


def draw_finetuning(run: RunDirectory) -> list[Path]:
    """`losses.png` (tasks, then teachers), `metrics.png` (where they were measured) and `speed.png`."""
    lines = run.metrics()
    live = run.about().get("reads", {}).get("live", {})
    random = frozenset(name for name, told in live.items() if told["random"])
    training = [line for line in lines if not line.get("evaluation")]
    evaluated = [line for line in lines if line.get("evaluation")]
    drawn = []
    if training:
        drawn.append(_task_losses(training, run.figures / "task_losses.png"))
        drawn.append(_speed(training, run.figures / "speed.png"))
        if live:
            drawn.append(_losses(training, random, run.figures / "losses.png"))
    if evaluated:
        drawn.append(_metrics(evaluated, run.figures / "metrics.png"))
    return drawn


def _task_losses(lines: Lines, path: Path) -> Path:
    """The total, then one panel a task, before its weight."""
    names = [name for name in lines[0] if name.startswith("task/")]
    figure, axes = _panels(1 + len(names))
    for panel, name in zip(axes, ("loss", *names), strict=True):
        _curve(panel, lines, name, name, COLOURS[0])
        panel.set_title(name.removeprefix("task/"))
    return _save(figure, axes, path, legend=False)


def _metrics(lines: Lines, path: Path) -> Path:
    """One panel a measurement on the validation split."""
    names = [name for name in lines[-1] if name.startswith(("metric/", "loss/")) or name == "delta_m"]
    figure, axes = _panels(max(len(names), 1))
    for panel, name in zip(axes, names, strict=False):
        _curve(panel, lines, name, name, COLOURS[0])
        panel.set_title(name.removeprefix("metric/"))
    return _save(figure, axes, path, legend=False)


def _named(teacher: str, random: Collection[str]) -> str:
    return f"{teacher} (RANDOM weights)" if teacher in random else teacher


def _losses(lines: Lines, random: Collection[str], path: Path) -> Path:
    """The total, then one panel a teacher with a line a level."""
    names = [name for name in lines[0] if "/level" in name]
    teachers = list(dict.fromkeys(name.split("/")[0] for name in names))
    figure, axes = _panels(1 + len(teachers))
    _curve(axes[0], lines, "loss", "all teachers and levels", COLOURS[0])
    axes[0].set_title("loss")
    for panel, teacher in zip(axes[1:], teachers, strict=True):
        levels = [name for name in names if name.startswith(f"{teacher}/")]
        for colour, name in zip(COLOURS, levels, strict=False):
            _curve(panel, lines, name, name.split("/")[1].replace("level", "level "), colour)
        panel.set_title(_named(teacher, random))
    return _save(figure, axes, path)


def _rep_sim(lines: Lines, random: Collection[str], path: Path) -> Path:
    """One line a teacher over the steps, then the levels at the end."""
    teachers = [name.split("/")[1] for name in lines[-1] if name.count("/") == 1 and name.startswith("rep_sim/")]
    figure, axes = _panels(2)
    for colour, teacher in zip(COLOURS, teachers, strict=False):
        _curve(axes[0], lines, f"rep_sim/{teacher}", _named(teacher, random), colour)
        levels = [name for name in lines[-1] if name.startswith(f"rep_sim/{teacher}/")]
        values = [lines[-1][name] for name in levels]
        axes[1].plot(range(1, len(values) + 1), values, "o-", color=colour, label=_named(teacher, random))
    axes[0].set_title("rep_sim on held-out images")
    axes[1].set(title=f"by level, step {lines[-1]['step']}", xlabel="level")
    axes[1].set_xticks(
        range(1, 1 + max(len([n for n in lines[-1] if n.startswith(f"rep_sim/{t}/")]) for t in teachers))
    )
    axes[1].legend(frameon=False, fontsize=8)
    return _save(figure, axes[:1], path)


def _speed(lines: Lines, path: Path) -> Path:
    figure, axes = _panels(3)
    for panel, (name, title) in zip(
        axes,
        (
            ("learning_rate", "learning rate"),
            ("images_per_second", "images a second"),
            ("data_wait", "share of time waiting for data"),
        ),
        strict=True,
    ):
        _curve(panel, lines, name, title, COLOURS[0])
        panel.set_title(title)
    axes[2].set_ylim(0, 1)
    return _save(figure, axes, path, legend=False)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.6 * count, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _curve(axes: Axes, lines: Lines, name: str, label: str, colour: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    mark = "o" if len(points) < 3 else ""
    axes.plot([step for step, _ in points], [value for _, value in points], color=colour, label=label, marker=mark)


def _save(figure: Figure, axes: Sequence[Axes], path: Path, *, legend: bool = True) -> Path:
    for panel in axes:
        panel.set_xlabel("step")
        panel.grid(alpha=0.2)
        if legend:
            panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    return path
