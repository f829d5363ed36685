"""Charts: what figures share (colours, axes, files that are the same for the same numbers), and a run's curves."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.storage.local import replace_file
from pipeline.train.run import RunDirectory
from pipeline.train.step_log import WAIT_WARNING

COLOURS = ("#1d4ed8", "#b91c1c", "#15803d", "#a16207", "#7e22ce", "#0e7490", "#be185d", "#475569")
SVG: Any = {"svg.hashsalt": "sak", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "text.parse_math": False}

Point = tuple[float, float]


def axes_row(count: int, *, width: float = 3.7, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes side by side, each of so many inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def draw_curve(axes: Axes, points: Sequence[Point], *, marks: bool = False, **style: Any) -> None:
    """A line through points, which are marked where they are too few to make one."""
    marker = "o" if marks or len(points) < 3 else ""
    axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, **style)


def draw_legend(axes: Axes) -> None:
    """The names of the lines that have one."""
    axes.legend(frameon=False, fontsize=8)


def name_points(axes: Axes, points: Sequence[tuple[str, Point]], **style: Any) -> None:
    """A name beside each point, towards the middle; above and below in turn, so that near ones stay apart."""
    middle = sum(axes.get_xlim()) / 2
    for number, (name, point) in enumerate(points):
        across, side = (-5, "right") if point[0] > middle else (5, "left")
        offset = (across, -12 if number % 2 else 6)
        axes.annotate(name, point, xytext=offset, textcoords="offset points", ha=side, **style)


def figure_png(figure: Figure, *, dpi: int = 120) -> bytes:
    """The bytes of a PNG."""
    image = BytesIO()
    figure.savefig(image, dpi=dpi)
    return image.getvalue()


@contextmanager
def svg_style(style: Any = None) -> Iterator[None]:
    """Within it figures are made and written by `figure_svg`, with further settings of matplotlib's; names are text."""
    with rc_context(SVG), rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # which matplotlib's font lacks: the viewer's may not
        yield


def figure_svg(figure: Figure) -> str:
    """The text of an SVG without date or origin."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


Lines = Sequence[Mapping[str, Any]]


def draw_distillation(run: RunDirectory) -> list[Path]:
    """`losses.png`, `rep_sim.png` (where it was measured) and `speed.png`; returns what was drawn."""
    training, measured = _recorded(run)
    random = frozenset(run.about().get("reads", {}).get("random", ()))
    drawn = []
    if training:
        drawn += [_losses(training, random, run.figures / "losses.png"), _speed(training, run.figures / "speed.png")]
    if measured:
        drawn.append(_rep_sim(measured, random, run.figures / "rep_sim.png"))
    return drawn


def draw_finetuning(run: RunDirectory) -> list[Path]:
    """`task_losses.png`, `losses.png` (of teachers), `metrics.png` (where they were measured) and `speed.png`."""
    training, measured = _recorded(run)
    live = run.about().get("reads", {}).get("live", {})
    random = frozenset(name for name, facts in live.items() if facts["random"])
    drawn = []
    if training:
        tasks = [name for name in training[0] if name.startswith("task/")]  # before their weights
        drawn.append(_panels(training, ["loss", *tasks], run.figures / "task_losses.png"))
        drawn.append(_speed(training, run.figures / "speed.png"))
        if live:
            drawn.append(_losses(training, random, run.figures / "losses.png"))
    if measured:
        metrics = [name for name in measured[-1] if name.startswith(("metric/", "loss/")) or name == "delta_m"]
        drawn.append(_panels(measured, metrics, run.figures / "metrics.png"))
    return drawn


def _recorded(run: RunDirectory) -> tuple[Lines, Lines]:
    """Lines of training, and those of measurements on held-out data."""
    lines = run.metrics()
    return ([line for line in lines if not line.get("evaluation")], [line for line in lines if line.get("evaluation")])


def _panels(lines: Lines, names: Sequence[str], path: Path) -> Path:
    """One panel a number."""
    figure, axes = axes_row(max(len(names), 1))
    for panel, name in zip(axes, names, strict=False):
        _curve(panel, lines, name, name, COLOURS[0])
        panel.set_title(name.removeprefix("task/").removeprefix("metric/"))
    return _save(figure, axes, path, legend=False)


def _losses(lines: Lines, random: Collection[str], path: Path) -> Path:
    """The total, then the levels."""
    names = [name for name in lines[-1] if "/level" in name]
    figure, (total, *panels) = axes_row(1 + len(_teachers(names)))
    _curve(total, lines, "loss", "", COLOURS[0])
    total.set(title="all that is summed", ylabel="loss")
    _levels(panels, lines, names, random)
    return _save(figure, panels, path)


def _rep_sim(lines: Lines, random: Collection[str], path: Path) -> Path:
    """One line a teacher, then the levels."""
    names = [name for name in lines[-1] if name.startswith("rep_sim/") and "/level" in name]
    teachers = _teachers(names)
    figure, (means, *panels) = axes_row(1 + len(teachers))
    for colour, teacher in zip(cycle(COLOURS), teachers, strict=False):
        _curve(means, lines, f"rep_sim/{teacher}", _titled(teacher, random), colour)
    means.set(title="mean of the levels, held-out images", ylabel="rep_sim (map cosine)")
    _levels(panels, lines, names, random)
    return _save(figure, [means, *panels], path)


def _teachers(names: Sequence[str]) -> list[str]:
    """Of `[.../]<teacher>/level<block>`."""
    return list(dict.fromkeys(name.split("/")[-2] for name in names))


def _levels(panels: Sequence[Axes], lines: Lines, names: Sequence[str], random: Collection[str]) -> None:
    """A panel a teacher with a line a level, deeper ones darker, on one scale, so that they can be compared."""
    shades = mpl.colormaps["viridis_r"]
    for panel, teacher in zip(panels, _teachers(names), strict=True):
        own = [name for name in names if name.split("/")[-2] == teacher]
        for position, name in enumerate(own, start=1):
            label = name.split("/")[-1].replace("level", "level ")
            _curve(panel, lines, name, label, shades(0.15 + 0.85 * position / len(own)))
        panel.set_title(_titled(teacher, random))
        if panel is not panels[0]:
            panel.sharey(panels[0])


def _titled(teacher: str, random: Collection[str]) -> str:
    return f"{teacher} (RANDOM weights)" if teacher in random else teacher


def _speed(lines: Lines, path: Path) -> Path:
    figure, axes = axes_row(3)
    rate, speed, wait = axes
    for panel, name in ((rate, "learning_rate"), (speed, "images_per_second"), (wait, "data_wait")):
        _curve(panel, lines, name, "", COLOURS[0])
    rate.set(title="learning rate", ylabel="rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    speed.set(title="speed, all processes", ylabel="images a second", ylim=(0, None))
    wait.axhline(WAIT_WARNING, color=COLOURS[1], linewidth=0.8, linestyle="--")
    wait.text(1, WAIT_WARNING, f"warned of above {WAIT_WARNING:.0%} ", transform=wait.get_yaxis_transform(),
              ha="right", va="bottom", fontsize=8, color=COLOURS[1])  # fmt: skip
    wait.set(title="waiting for data", ylabel="share of the time", ylim=(0, 1))
    wait.yaxis.set_major_formatter(PercentFormatter(1))
    return _save(figure, axes, path, legend=False)


def _curve(axes: Axes, lines: Lines, name: str, label: str, colour: Any) -> None:
    draw_curve(axes, [(line["step"], line[name]) for line in lines if name in line], color=colour, label=label)


def _save(figure: Figure, axes: Sequence[Axes], path: Path, *, legend: bool = True) -> Path:
    """Write the figure, with a legend in each of `axes`."""
    for panel in figure.axes:
        panel.set_xlabel("step")
        panel.grid(alpha=0.2)
    for panel in axes if legend else ():
        draw_legend(panel)
    replace_file(path, figure_png(figure))
    return path


def draw_rep_sim(similarity: Mapping[str, Sequence[float]], levels: Sequence[int], path: Path, *, images: int) -> Path:
    """How like each teacher's maps the student's are on so many images, a line a teacher over the student's levels."""
    figure, (axes,) = axes_row(1, width=4.6, height=3.4)
    for number, (teacher, values) in enumerate(similarity.items()):
        draw_curve(axes, list(enumerate(values)), marks=True, color=COLOURS[number % len(COLOURS)], label=teacher)
    axes.set_xticks(range(len(levels)), [f"level {level}" for level in levels])
    axes.set(title=f"rep_sim by level, {images:,} validation images", ylabel="cosine of the whole map", ylim=(None, 1))
    axes.grid(alpha=0.2)
    draw_legend(axes)
    replace_file(path, figure_png(figure, dpi=130))
    return path
