"""A study's results as files: CSV for programs, Markdown for people, LaTeX for papers, and one plot as SVG."""

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import cycle
from math import isfinite

from pipeline.ablate.results import BALANCE, BYTES, GAIN, HOURS, REP_SIM, SPEED, Results, RowResult, Spread
from pipeline.pictures.charts import COLOURS, axes_row, draw_legend, figure_svg, name_points, svg_style
from pipeline.tables import paper_table, text_table

HEADINGS = {BYTES: "bytes/image", SPEED: "images/s", GAIN: "delta_m %", BALANCE: "mu/sigma"}
_UNJUDGED = (BYTES, HOURS, SPEED)
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
          "±": r"$\pm$"}  # fmt: skip


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
    known = [(row.values[name].mean, row.name) for row in results.rows if name in row.values]
    finite = [(mean, row) for mean, row in known if isfinite(mean)]
    lower = any(task.name == name and task.lower_is_better for task in results.dataset or ())
    return (min(finite) if lower else max(finite))[1] if len(finite) > 1 else None


def runs_csv(results: Results) -> str:
    """A line a run: row, seed, every value, keys, failure."""
    names = list(dict.fromkeys(name for result in results.results for name in result.values))
    lines: list[dict[str, object]] = [
        {
            "row": result.row,
            "seed": result.seed,
            **{name: result.values.get(name, "") for name in names},
            "random": "yes" if result.random else "",
            "keys": " ".join(result.keys),
            **{f"run {stage}": run for stage, run in result.runs.items()},
            "failure": result.failure or "",
        }
        for result in results.results
    ]
    return _csv(lines)


def rows_csv(results: Results) -> str:
    """A line a row: mean and standard deviation of every column, seeds, keys."""
    lines: list[dict[str, object]] = []
    for row in results.rows:
        values: dict[str, object] = {}
        for name in results.columns:
            value = row.values.get(name)
            values |= {name: value and value.mean, f"{name} std": value and value.deviation}
        random = "yes" if row.random else ""
        lines.append(
            {"row": row.name, **row.labels, "seeds": row.runs, **values, "random": random, "keys": " ".join(row.keys)}
        )
    return _csv(lines)


def _csv(lines: Sequence[dict[str, object]]) -> str:
    """With all names that a line has; None and what a line lacks are empty cells."""
    text = StringIO()
    names = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def results_text(results: Results, width: int) -> str:
    """The table for a terminal."""
    headings = [heading(name, results) for name in results.columns]
    rows = [
        {
            "row": f"{row.name} RANDOM" if row.random else row.name,
            **{title: text for title, (text, _) in zip(headings, _cells(row, results), strict=True)},
            "seeds": _seeds(row),
        }
        for row in results.rows
    ]
    return "\n".join([results.title, text_table(rows, width=width), *results.notes])


def _cells(row: RowResult, results: Results) -> list[tuple[str, bool]]:
    """A row's numbers, empty where it has none, and whether each is the best of its column."""
    return [
        (number(row.values[name], name), best_row(name, results) == row.name) if name in row.values else ("", False)
        for name in results.columns
    ]


def markdown(results: Results) -> str:
    """The table with mean and spread, the best of each column bold, the paper's beside it, keys, and what failed."""
    names = ["", *(heading(name, results) for name in results.columns), "seeds"]
    rows = [
        [_marked(row), *(f"**{text}**" if best else text for text, best in _cells(row, results)), _seeds(row)]
        for row in results.rows
    ]
    parts = [f"# {results.title}", _markdown_table(names, rows), *results.notes]
    if results.paper is not None:
        parts += _papers(results.paper)
    parts.append("## Columns of the cache that each row read")
    parts.append("\n".join(f"- {_escaped(row.name)}: {' '.join(row.keys) or 'none'}" for row in results.rows))
    if results.failures:
        failures = [f"{run.row}, seed {run.seed}: {run.failure}" for run in results.failures]
        parts += ["## Not there", "\n".join(f"- {_escaped(failure)}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _papers(name: str) -> list[str]:
    table = paper_table(name)
    columns = list(dict.fromkeys(column for values in table.rows.values() for column in values))
    rows = [
        [row, *(f"{values[column]:.4g}" if column in values else "" for column in columns)]
        for row, values in table.rows.items()
    ]
    return [f"The paper's numbers on {table.dataset}, {table.title}:", _markdown_table(["", *columns], rows)]


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---", *("---:" for _ in names[1:])], *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)


def _escaped(text: str) -> str:
    """Text as a cell of a Markdown table has it."""
    return text.replace("|", "\\|").replace("\n", " ")


def _marked(row: RowResult) -> str:
    return f"{row.name} (RANDOM teachers)" if row.random else row.name


def _seeds(row: RowResult) -> str:
    return str(row.runs) if row.runs == row.planned else f"{row.runs} of {row.planned}"


def number(value: Spread, name: str) -> str:
    """`mean ± deviation`; the mean alone of one seed, and of what no seed changes."""
    small = name.startswith(REP_SIM) or name == "depth"
    digits = 4 if small else {BYTES: 0, SPEED: 1, HOURS: 3}.get(name, 2)
    mean = f"{value.mean:,.{digits}f}"
    return mean if value.deviation is None or name == BYTES else f"{mean} ± {value.deviation:,.{digits}f}"


def latex(results: Results) -> str:
    """A `tabular` with booktabs' rules."""
    rows = [
        [escape_latex(_marked(row)), *(_latex_number(text, best) for text, best in _cells(row, results))]
        for row in results.rows
    ]
    headings = ["", *(escape_latex(heading(name, results)) for name in results.columns)]
    head, *body = (" & ".join(cells) + r" \\" for cells in [headings, *rows])
    begin = r"\begin{tabular}{l" + "r" * len(results.columns) + "}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def _latex_number(text: str, best: bool) -> str:
    if not text:
        return ""
    text = text.replace("±", r"\pm").replace(",", "{,}").replace("nan", r"\mathrm{nan}")
    return rf"$\mathbf{{{text}}}$" if best else f"${text}$"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


DASHES = ("-", "--", ":")

Point = tuple[float, Spread, str]


def plot_svg(results: Results) -> str | None:
    """The first column against what it cost, or against an axis; None where none is asked for or no row has both."""
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
    labels = (label for name, label in row.labels.items() if name != axis)
    return ", ".join(part for part in (row.series, *labels) if part)


def _draw(results: Results, lines: dict[str, list[Point]], y: str) -> str:
    with svg_style():
        figure, (axes,) = axes_row(1, width=6.4, height=4)
        styles = cycle((colour, dash) for dash in DASHES for colour in COLOURS)
        for (colour, dash), (series, points) in zip(styles, lines.items(), strict=False):
            points = sorted(points, key=lambda point: point[0])
            spreads = [value.deviation or 0.0 for _, value, _ in points]
            axes.errorbar(
                [x for x, _, _ in points],
                [value.mean for _, value, _ in points],
                yerr=spreads if any(spreads) else None,
                fmt=f"o{dash}" if series else "o",
                capsize=3,
                color=colour,
                label=series or None,
            )
            if not series:
                name_points(axes, [(name, (x, value.mean)) for x, value, name in points], fontsize=8)
        axes.set(xlabel=heading(results.plot or "", results).rstrip(" ↑"), ylabel=heading(y, results).rstrip(" ↑↓"))
        random = " (RANDOM teachers)" if any(row.random for row in results.rows) else ""
        axes.set_title(f"{results.title}{random}", fontsize=10)
        axes.grid(alpha=0.2)
        if any(lines):
            draw_legend(axes)
        return figure_svg(figure)
