"""What the page's template shows: charts as inline SVG, numbers and pictures.

A chart's colours become the page's variables, so they follow light and dark.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import floor, isfinite, isnan, pi, sin

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.pictures.charts import COLOURS, Point, axes_row, draw_curve, figure_svg, name_points, svg_style
from pipeline.tables import human_bytes

INK, FAINT, LINE, OVER = "#1b2430", "#5a6675", "#d8dee6", "#fefefe"
VARIABLES = {colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)} | {
    INK: "var(--ink)", FAINT: "var(--faint)", LINE: "var(--line)", OVER: "var(--over)",
}  # fmt: skip
STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "axes.edgecolor": FAINT, "axes.labelcolor": FAINT,
    "axes.axisbelow": True, "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "xtick.color": FAINT, "ytick.color": FAINT, "ytick.major.size": 0, "text.color": INK, "grid.color": LINE,
    "grid.linewidth": 1, "lines.linewidth": 2, "axes.labelpad": 8, "font.size": 12,
}  # fmt: skip
WIDTH, HEIGHT = 460, 260
LARGEST, LONGEST = 1e30, 40  # beyond it a number has no place on an axis, a name none beside a chart


@dataclass(frozen=True)
class Chart:
    """The inside of an SVG of so many pixels, what it shows, and the names of its lines for a legend below it."""

    svg: Markup
    width: int
    height: int
    title: str
    caption: str
    names: Sequence[str] = ()


def line_chart(
    lines: Mapping[str, Sequence[Point]], *, title: str, caption: str, y: str, marks: bool = False
) -> Chart | None:
    """Curves by name over the steps; None where no line has a point that can be drawn."""
    drawable = {name: [point for point in points if all(map(_fits, point))] for name, points in lines.items()}
    known = {name: points for name, points in drawable.items() if points}
    if not known:
        return None
    with svg_style(STYLE):
        figure, axes = _framed("step", y)
        for number, points in enumerate(known.values()):
            dash = "-" if number < len(COLOURS) else "--"
            draw_curve(axes, points, marks=marks, color=COLOURS[number % len(COLOURS)], linestyle=dash)
        return _chart(figure, title, caption, tuple(known))


def scatter(points: Sequence[tuple[str, Point]], *, title: str, caption: str, x: str, y: str) -> Chart | None:
    """Named points; None where none can be drawn."""
    known = [(_short(name), point) for name, point in points if all(map(_fits, point))]
    if not known:
        return None
    with svg_style(STYLE):
        figure, axes = _framed(x, y)
        axes.plot(*zip(*(point for _, point in known), strict=True), "o", color=COLOURS[0])
        name_points(axes, known)
        return _chart(figure, title, caption)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, title: str, caption: str
) -> Chart:
    """Every value written into its cell, shaded by its size between 0 and the largest."""
    names = [_short(name) for name in rows]
    largest = max((value for row in values for value in row if isfinite(value)), default=1.0) or 1.0
    left, across, down = 16 + 7 * max(map(len, names)), 62 * len(columns), 30 * len(rows)
    width, height = left + across + 8, down + 36
    with svg_style(STYLE):
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((left / width, 6 / height, across / width, down / height))
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.set_xticks([index + 0.5 for index in range(len(columns))], map(_short, columns))
        axes.set_yticks([index + 0.5 for index in range(len(rows))], names)
        axes.tick_params(length=0, bottom=False, labelbottom=False, labeltop=True)
        axes.spines[:].set_visible(False)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                share = min(max(0.0, value / largest), 1.0)
                corner, colour = (column + 0.02, row + 0.03), (COLOURS[0], 0.08 + 0.82 * share)
                axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=colour, linewidth=0))
                ink = OVER if share > 0.78 else INK
                axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=ink)
        return _chart(figure, title, caption)


def radar(corners: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, caption: str) -> Chart:
    """One closed line a series over the corners; values are shares of each corner's best, and the centre is said."""
    lowest = min((value for values in series.values() for value in values), default=0.0)
    centre = min(max(0.0, floor((lowest - 0.1) * 10) / 10), 0.9)
    turns = [2 * pi * number / len(corners) for number in range(len(corners))]
    with svg_style(STYLE):
        figure = Figure(figsize=(WIDTH / 72, 330 / 72))
        axes = figure.add_axes((0.24, 0.15, 0.52, 0.73), projection="polar", theta_offset=pi / 2, theta_direction=-1)
        axes.set(ylim=(centre, 1), yticks=[centre + (1 - centre) * ring / 4 for ring in range(1, 5)], yticklabels=[])
        axes.set_xticks(turns, corners)
        for label, turn in zip(axes.get_xticklabels(), turns, strict=True):
            label.set_horizontalalignment("center" if abs(sin(turn)) < 0.3 else "left" if sin(turn) > 0 else "right")
        axes.spines["polar"].set_color(LINE)
        for number, values in enumerate(series.values()):
            shares = [min(max(value, centre), 1.0) for value in values]
            colour = COLOURS[number % len(COLOURS)]
            axes.fill(turns, shares, facecolor=(colour, 0.1), edgecolor=colour, linewidth=2, clip_on=False)
        scale = f"centre {100 * centre:.0f} %, edge 100 % of the best"
        figure.text(0.5, 0.02, scale, ha="center", color=FAINT)
        return _chart(figure, title, caption, tuple(series))


def _framed(x: str, y: str) -> tuple[Figure, Axes]:
    """Axes with lines at the ticks of y."""
    figure, (axes,) = axes_row(1, width=WIDTH / 72, height=HEIGHT / 72)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_tick)
    return figure, axes


def _tick(value: float, _: float = 0) -> str:
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def _fits(value: float) -> bool:
    return abs(value) < LARGEST  # nor does nan


def _short(name: object) -> str:
    """A name, which foreign files may give as anything, as text that any font can be asked about."""
    text = str(name).encode(errors="replace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _chart(figure: Figure, title: str, caption: str, names: Sequence[str] = ()) -> Chart:
    """The figure without what belongs to a file of its own: header, global style, identifiers of groups."""
    text = figure_svg(figure)
    inner = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    inner = re.sub(r'\n *<g id="[^"]*"', "<g", inner)
    inner = re.sub(r"#[0-9a-f]{6}\b", lambda match: VARIABLES.get(match[0], match[0]), inner)
    width, height = (round(72 * float(inches)) for inches in figure.get_size_inches())
    return Chart(Markup(inner), width, height, title, caption, names)


PNG = b"\x89PNG\r\n\x1a\n"


def number(value: object, digits: int = 4) -> str:
    """A number for a table, whole where its digits end before the point; a dash where there is none."""
    if not isinstance(value, float | int) or isnan(value):
        return "-"
    text = f"{value:#,.{digits}g}".rstrip(".") if value else "0"
    return f"{value:,.0f}" if "e+" in text else text


def data_url(png: bytes) -> str:
    """A PNG as the address of an image that is in the page itself."""
    if not png.startswith(PNG):
        raise ValueError("a picture of the page is a PNG")
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def render(**content: object) -> str:
    """The document. What runs say is not trusted: all that is put into the template is escaped but our own charts."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "human_bytes": human_bytes}
    source = files("pipeline.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(content)
