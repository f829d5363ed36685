"""The paper's numbers, to stand beside ours: tables as printed, by the name that a recipe gives (`paper.yaml`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sak.errors import UsageError, nearest


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
