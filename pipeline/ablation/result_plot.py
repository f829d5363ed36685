"""A study's first metric against what it cost, or against an axis: as SVG."""

from collections.abc import Sequence
from io import StringIO
from itertools import cycle

from pipeline.ablation.result_tables import heading
from pipeline.ablation.results import Results, RowResult, Spread

COLOURS = ("#1d4ed8", "#b91c1c", "#15803d", "#a16207", "#7e22ce", "#0e7490")
DASHES = ("-", "--", ":")

Point = tuple[float, Spread, str]


def plot_svg(results: Results) -> str | None:
    """The picture; None where the study asks for none or no row has both values."""
    if results.plot is None or not results.columns:
        return None
    y = results.columns[0]
    lines: dict[str, list[Point]] = {}
    for row in results.rows:
        x = _x(row, results.plot)
        if x is not None and y in row.values:
            lines.setdefault(_line(row, results.plot), []).append((x, row.values[y], row.name))
    return _draw(results, lines, y) if lines else None


def _x(row: RowResult, name: str) -> float | None:
    """A column's mean, or the number that labels an axis."""
    if name in row.values:
        return row.values[name].mean
    try:
        return float(row.labels[name])
    except (KeyError, ValueError):
        return None


def _line(row: RowResult, axis: str) -> str:
    """Against an axis, the rows that differ in nothing else are a line; against a column every row is a point."""
    if axis not in row.labels:
        return ""
    others = (label for name, label in row.labels.items() if name != axis)
    return ", ".join(part for part in (row.series, *others) if part)


def _draw(results: Results, lines: dict[str, list[Point]], y: str) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "sak", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        styles = cycle((colour, dash) for dash in DASHES for colour in COLOURS)
        for (colour, dash), (series, points) in zip(styles, lines.items(), strict=False):
            points = sorted(points, key=lambda point: point[0])
            spreads = [point[1].deviation or 0.0 for point in points]
            axes.errorbar(
                [point[0] for point in points],
                [point[1].mean for point in points],
                yerr=spreads if any(spreads) else None,
                fmt=f"o{dash}" if series else "o",
                capsize=3,
                color=colour,
                label=series or None,
            )
            if not series:
                axes.margins(x=0.12)  # room for the last name
                axes.locator_params(axis="x", nbins=6)
                _name(axes, points)
        axes.set(xlabel=heading(results.plot or "", results).rstrip(" ↑"), ylabel=heading(y, results).rstrip(" ↑↓"))
        random = " (RANDOM teachers)" if any(row.random for row in results.rows) else ""
        axes.set_title(f"{results.title}{random}", fontsize=10)
        axes.grid(alpha=0.2)
        if any(lines):
            axes.legend(frameon=False, fontsize=8)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _name(axes: object, points: Sequence[Point]) -> None:
    """Every point's row beside it, up and down in turn so that near ones do not cover each other."""
    for place, (x, found, name) in enumerate(points):
        axes.annotate(  # type: ignore[attr-defined]
            name, (x, found.mean), xytext=(5, 6 if place % 2 == 0 else -12), textcoords="offset points", fontsize=8
        )
