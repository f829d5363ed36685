"""What figures share: colours, panels, and files that are the same for the same numbers."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
