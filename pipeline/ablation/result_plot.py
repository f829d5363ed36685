"""A study's first metric against what it cost, or against an axis: as SVG."""

from itertools import cycle

from pipeline.ablation.result_tables import heading
from pipeline.ablation.results import Results, RowResult, Spread
from pipeline.pictures.charts import COLOURS, axes_row, draw_legend, figure_svg, name_points, svg_style

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
    with svg_style():
        figure, (axes,) = axes_row(1, width=6.4, height=4)
        styles = cycle((colour, dash) for dash in DASHES for colour in COLOURS)
        for (colour, dash), (series, points) in zip(styles, lines.items(), strict=False):
            points = sorted(points, key=lambda point: point[0])
            spreads = [found.deviation or 0.0 for _, found, _ in points]
            axes.errorbar(
                [x for x, _, _ in points],
                [found.mean for _, found, _ in points],
                yerr=spreads if any(spreads) else None,
                fmt=f"o{dash}" if series else "o",
                capsize=3,
                color=colour,
                label=series or None,
            )
            if not series:
                name_points(axes, [(name, (x, found.mean)) for x, found, name in points], fontsize=8)
        axes.set(xlabel=heading(results.plot or "", results).rstrip(" ↑"), ylabel=heading(y, results).rstrip(" ↑↓"))
        random = " (RANDOM teachers)" if any(row.random for row in results.rows) else ""
        axes.set_title(f"{results.title}{random}", fontsize=10)
        axes.grid(alpha=0.2)
        if any(lines):
            draw_legend(axes)
        return figure_svg(figure)
