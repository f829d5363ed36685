"""Text tables for a terminal, sizes in bytes for people, and the paper's tables to stand beside our results.

A text table's columns are sized to their content, with numbers to the right; in a pipe it is the same text. The paper's
numbers are as printed (`tables.yaml`), under the names that ablation recipes give.
"""

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
    columns = [_column(name, [row[name] for row in rows]) for name in rows[0]]
    first, groups = columns[:repeat], [columns[:repeat]]
    for column in columns[repeat:]:
        taken = sum(2 + len(lines[0]) for lines in (*groups[-1], column)) - 2
        if width is not None and taken > width and len(groups[-1]) > repeat:
            groups.append(list(first))
        groups[-1].append(column)
    return "\n\n".join(_side_by_side(group) for group in groups)


def _column(name: str, values: Sequence[object]) -> list[str]:
    """Heading, rule and cells of one column, padded to one width: numbers to the right, words to the left."""
    cells = [_cell(value) for value in values]
    width = max(len(name), *map(len, cells))
    side = ">" if all(isinstance(value, int | float) for value in values) else "<"
    return [f"{line:{side}{width}}" for line in (name, "-" * width, *cells)]


def _side_by_side(columns: Sequence[Sequence[str]]) -> str:
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


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
