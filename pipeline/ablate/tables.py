"""A study's results as text: CSV for programs, Markdown for people, LaTeX for papers."""

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import cycle
from math import isfinite

from pipeline.ablate.results import BALANCE, BYTES, GAIN, HOURS, REP_SIM, SPEED, Results, RowResult, Spread
from pipeline.pictures.charts import COLOURS, axes_row, draw_legend, figure_svg, name_points, svg_style
from pipeline.tables import paper_table, text_table

HEADINGS = {
    REP_SIM: "rep_sim",
    BYTES: "bytes/image",
    SPEED: "images/s",
    HOURS: "hours",
    GAIN: "delta_m %",
    BALANCE: "mu/sigma",
}
_UNJUDGED = (BYTES, HOURS, SPEED)
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip


def heading(name: str, results: Results) -> str:
    """A column's heading, with its metric and an arrow to the better side."""
    if name.startswith("rep_sim/"):
        return f"rep_sim {name.partition('/')[2]} ↑"
    tasks = {task.name: task for task in results.dataset or ()}
    if name in tasks:
        return f"{name} {tasks[name].metric} {'↓' if tasks[name].lower_is_better else '↑'}"
    return f"{HEADINGS.get(name, name)}{'' if name in _UNJUDGED else ' ↑'}"


def best_row(name: str, results: Results) -> str | None:
    """The row whose mean is best; None where nothing is judged or there is nothing to choose from."""
    if name in _UNJUDGED:
        return None
    means = [(row.values[name].mean, row.name) for row in results.rows if name in row.values]
    have = [mean for mean in means if isfinite(mean[0])]
    lower = any(task.name == name and task.lower_is_better for task in results.dataset or ())
    return (min(have) if lower else max(have))[1] if len(have) > 1 else None


def runs_csv(results: Results) -> str:
    """A line a run: row, seed, every value, keys, failure."""
    names = list(dict.fromkeys(name for each in results.results for name in each.values))
    lines: list[dict[str, object]] = [
        {
            "row": result.row,
            "seed": result.seed,
            **{name: result.values.get(name, "") for name in names},
            "random": _yes(result.random),
            "keys": " ".join(result.keys),
            **{f"run {stage}": run for stage, run in result.runs.items()},
            "failure": result.failure or "",
        }
        for result in results.results
    ]
    return _csv(lines)


def rows_csv(results: Results) -> str:
    """A line a row: mean and standard deviation of every column, seeds, keys."""
    lines = []
    for row in results.rows:
        line: dict[str, object] = {"row": row.name, **row.labels, "seeds": row.runs}
        for name in results.columns:
            found = row.values.get(name)
            line |= {name: "" if found is None else found.mean}
            line |= {f"{name} std": "" if found is None or found.deviation is None else found.deviation}
        lines.append({**line, "random": _yes(row.random), "keys": " ".join(row.keys)})
    return _csv(lines)


def _yes(random: bool) -> str:
    """Whether a line's teachers have random weights."""
    return "yes" if random else ""


def _csv(lines: Sequence[dict[str, object]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def results_text(results: Results, width: int) -> str:
    """The table for a terminal."""
    rows = [
        {
            "row": f"{row.name} RANDOM" if row.random else row.name,
            **{
                heading(name, results): number(row.values[name], name) if name in row.values else ""
                for name in results.columns
            },
            "seeds": _seeds(row),
        }
        for row in results.rows
    ]
    return "\n".join([results.title, text_table(rows, width=width), *results.notes])


def markdown(results: Results) -> str:
    """The table with mean and spread, the paper's beside it, keys, and what failed."""
    parts = [f"# {results.title}", markdown_table(results), *results.notes]
    if results.paper is not None:
        parts += _papers(results)
    parts.append("## Columns of the cache that each row read")
    parts.append("\n".join(f"- {_cell(row.name)}: {' '.join(row.keys) or 'none'}" for row in results.rows))
    if results.failures:
        parts.append("## Not there")
        parts.append("\n".join(f"- {_cell(e.row)}, seed {e.seed}: {_cell(e.failure or '')}" for e in results.failures))
    return "\n\n".join(parts) + "\n"


def markdown_table(results: Results) -> str:
    """The table alone; the best of each column is bold."""
    names = ["", *(heading(name, results) for name in results.columns), "seeds"]
    lines = [_line(names), _line(["---", *("---:" for _ in names[1:])])]
    best = {name: best_row(name, results) for name in results.columns}
    for row in results.rows:
        cells = [_shown(row, name, best[name]) for name in results.columns]
        lines.append(_line([_marked(row), *cells, _seeds(row)]))
    return "\n".join(lines)


def _papers(results: Results) -> list[str]:
    table = paper_table(results.paper or "")
    columns = list(dict.fromkeys(name for values in table.rows.values() for name in values))
    lines = [_line(["", *columns]), _line(["---", *("---:" for _ in columns)])]
    for row, values in table.rows.items():
        lines.append(_line([row, *(f"{values[name]:.4g}" if name in values else "" for name in columns)]))
    return [f"The paper's numbers on {table.dataset}, {table.title}:", "\n".join(lines)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _marked(row: RowResult) -> str:
    return f"{row.name} (RANDOM teachers)" if row.random else row.name


def _seeds(row: RowResult) -> str:
    return str(row.runs) if row.runs == row.planned else f"{row.runs} of {row.planned}"


def _shown(row: RowResult, name: str, best: str | None) -> str:
    found = row.values.get(name)
    if found is None:
        return ""
    text = number(found, name)
    return f"**{text}**" if best == row.name else text


def number(found: Spread, name: str) -> str:
    """`mean ± deviation`; the mean alone of one seed, and of what no seed changes."""
    digits = decimals(name)
    plain = f"{found.mean:,.{digits}f}"
    return plain if found.deviation is None or name == BYTES else f"{plain} ± {found.deviation:,.{digits}f}"


def decimals(name: str) -> int:
    """Places after the point."""
    if name.startswith("rep_sim") or name == "depth":
        return 4
    return {BYTES: 0, SPEED: 1, HOURS: 3}.get(name, 2)


def latex(results: Results) -> str:
    """A `tabular` with booktabs' rules."""
    lines = [
        r"\begin{tabular}{l" + "r" * len(results.columns) + "}",
        r"\toprule",
        _latex_line(["", *(heading(name, results) for name in results.columns)]),
        r"\midrule",
    ]
    best = {name: best_row(name, results) for name in results.columns}
    for row in results.rows:
        cells = [_latex_cell(row, name, best[name]) for name in results.columns]
        lines.append(" & ".join([escape_latex(_marked(row)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"


def _latex_cell(row: RowResult, name: str, best: str | None) -> str:
    if name not in row.values:
        return ""
    text = number(row.values[name], name).replace("±", r"\pm").replace(",", "{,}").replace("nan", r"\mathrm{nan}")
    return rf"$\mathbf{{{text}}}$" if best == row.name else f"${text}$"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
    return "".join(_LATEX.get(sign, arrows.get(sign, sign)) for sign in text)


# A study's first metric against what it cost, or against an axis: as SVG.

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
            lines.setdefault(_svg_line(row, results.plot), []).append((x, row.values[y], row.name))
    return _draw(results, lines, y) if lines else None


def _x(row: RowResult, name: str) -> float | None:
    """A column's mean, or the number that labels an axis."""
    if name in row.values:
        return row.values[name].mean
    try:
        return float(row.labels[name])
    except (KeyError, ValueError):
        return None


def _svg_line(row: RowResult, axis: str) -> str:
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
