"""Tables for a terminal: columns sized to their content, numbers to the right, the same text in a pipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sak.errors import UsageError, nearest

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
SCREEN = 100  # characters of a line that every terminal in use shows


def text_table(rows: Sequence[Mapping[str, object]], *, width: int | None = None, repeat: int = 1) -> str:
    """Rows of equal keys, the keys as headings; an empty sequence gives an empty text.

    What does not fit into `width` characters goes on below, under the first `repeat` columns again, so that no line is
    broken.
    """
    if not rows:
        return ""
    names = list(rows[0])
    first, rest = names[:repeat], names[repeat:]
    room = sum(2 + _width(rows, name) for name in first) - 2
    groups, taken = [list(first)], room
    for name in rest:
        taken += 2 + _width(rows, name)
        if width is not None and taken > width and len(groups[-1]) > repeat:
            groups.append(list(first))
            taken = room + 2 + _width(rows, name)
        groups[-1].append(name)
    return "\n\n".join(_unfolded(rows, columns) for columns in groups)


def _width(rows: Sequence[Mapping[str, object]], name: str) -> int:
    return max(len(name), *(len(_cell(row[name])) for row in rows))


def _unfolded(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    right = [all(isinstance(row[name], int | float) for row in rows) for name in columns]
    widths = [_width(rows, name) for name in columns]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *(line(values) for values in cells)])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def human_bytes(count: float) -> str:
    """Decimal units, three digits: 999 B, 1.02 kB, 42.5 TB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.3g} {UNITS[unit]}"


# The paper's numbers, to stand beside ours: tables as printed, by the name that a recipe gives (`tables.yaml`).


@dataclass(frozen=True)
class PaperTable:
    """One table: what it shows, on which data set, and a row's values by column."""

    title: str
    dataset: str
    rows: Mapping[str, Mapping[str, float]]


def _table(columns: list[str], rows: dict[str, list[float]], **about: Any) -> PaperTable:
    return PaperTable(rows={row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}, **about)


TABLES: dict[str, PaperTable] = {
    name: _table(**table) for name, table in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items()
}


def paper_table(name: str) -> PaperTable:
    """A table by its name; UsageError names the nearest one."""
    if name not in TABLES:
        raise UsageError(f"the paper's numbers of {name!r} are not known{nearest(name, TABLES)}")
    return TABLES[name]
