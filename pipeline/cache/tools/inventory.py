"""`cache ls`, `du` and `stats`: what a cache holds, what it weighs, and how faithful it is."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from pipeline.cache.column import Column
from pipeline.cache.column_codec import LevelFidelity, level_arrays
from pipeline.cache.folder import Cache, CacheFolder, ColumnId
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import CacheError
from pipeline.cache.reader.teacher_reader import TeacherReader
from pipeline.cache.records import BlockRecord
from pipeline.cache.selection import SampleTable
from pipeline.cache.stores.base import DamageError
from pipeline.storage import Entry
from pipeline.tables import SCREEN, human_bytes, text_table

_DIGITS = 8  # of a data key, which commands take as its beginning


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """What every listing says of one column in one folder of a cache.

    `damage` says why nothing else is known of a column whose manifest or records cannot be read.
    """

    cache: str
    name: str
    data: str
    random: bool = False
    damage: str | None = None

    @classmethod
    def at(cls, folder: CacheFolder, path: ColumnId) -> Self:
        """What is known before anything is read."""
        return cls(cache=str(folder.location), name=path.name, data=path.data)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def row(self) -> dict[str, object]:
        """The cells of its line in a table."""
        return column_cells(self.name, self.data, random=self.random)

    def damage_line(self) -> str:
        """The line of a damaged column."""
        return f"{self.name} {self.data[:_DIGITS]} DAMAGED: {self.damage}"


Summary = TypeVar("Summary", bound=ColumnSummary)


def column_cells(name: str, data: str, *, random: bool) -> dict[str, object]:
    """The first cells of every table of columns: name, RANDOM where its teacher knows nothing, and data key."""
    return {"column": f"{name} RANDOM" if random else name, "data": data[:_DIGITS]}


def column_table(rows: Sequence[dict[str, object]]) -> str:
    """A table for a screen; what does not fit goes on below, beside the columns' names and data keys."""
    return text_table(rows, width=SCREEN, repeat=2)


def summary_table(summaries: Sequence[ColumnSummary]) -> str:
    """What `ls`, `du` or `stats` gave: a line a column or level; damaged columns stand below."""
    rows = [summary.row() for summary in summaries if not summary.damage]
    damaged = [summary.damage_line() for summary in summaries if summary.damage]
    return "\n".join([*([column_table(rows)] if rows or not damaged else []), *damaged])


@dataclass(frozen=True, kw_only=True)
class ColumnListing(ColumnSummary):
    """One column as `ls` shows it; `nbytes` are those its records vouch for."""

    model: str = ""
    weights: str = ""
    width: int = 0
    levels: tuple[int, ...] = ()
    grid: tuple[int, int] = (0, 0)
    reduction: str = ""
    encoding: str = ""
    format: str = ""
    codec: str = ""
    views: int = 0
    blocks: int = 0
    blocks_planned: int = 0
    samples: int = 0
    samples_planned: int = 0
    quarantined: int = 0
    nbytes: int = 0
    writers: int = 0

    @property
    def teacher(self) -> str:
        """The teacher's name in the spec."""
        return ColumnId(self.name, self.data).teacher

    @property
    def complete(self) -> bool:
        """Whether every block of every view that was begun is there."""
        return self.damage is None and self.blocks == self.blocks_planned

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"teacher": self.teacher, "complete": self.complete}

    def row(self) -> dict[str, object]:
        """The cells of its line in a table."""
        grid = "{}x{}".format(*self.grid)
        return super().row() | {
            "levels": ",".join(map(str, self.levels)),
            "grid": grid if self.reduction == "native" else f"{grid} {self.reduction}",
            "encoding": self.encoding,
            "format": self.format if self.codec == "none" else f"{self.format} {self.codec}",
            "views": self.views,
            "samples": f"{self.samples:,}/{self.samples_planned:,}",
            "blocks": f"{self.blocks:,}/{self.blocks_planned:,}",
            "bad": self.quarantined,
            "size": human_bytes(self.nbytes),
            "writers": self.writers,
            "model": self.model,
        }


@dataclass(frozen=True, kw_only=True)
class Usage(ColumnSummary):
    """What one column takes on disk, by kind of file, and by level of the encoded arrays; `stray` is of no block.

    The levels' bytes are those before any lossless codec. Of a damaged column only files and bytes are known.
    """

    files: int
    nbytes: int
    by_kind: dict[str, int]
    by_level: dict[int, int] = field(default_factory=dict)
    stray: int = 0
    per_sample: float = 0.0

    def row(self) -> dict[str, object]:
        """The cells of its line in a table."""
        return super().row() | {
            "files": self.files,
            "size": human_bytes(self.nbytes),
            "a sample": human_bytes(self.per_sample),
            "by level": " ".join(f"{level}:{human_bytes(count)}" for level, count in self.by_level.items()),
            "of no block": human_bytes(self.stray),
        }

    def damage_line(self) -> str:
        """The line of a damaged column, with its bytes."""
        size = f"{human_bytes(self.nbytes)} in {self.files} files"
        return f"{self.name} {self.data[:_DIGITS]} {size} DAMAGED: {self.damage}"


@dataclass(frozen=True, kw_only=True)
class LevelStats(ColumnSummary):
    """How faithful one level of a column is: `summary` as `LevelFidelity.summary` gives it.

    A damaged column is one row: level 0 and an empty summary.
    """

    level: int = 0
    encoding: str = ""
    summary: dict[str, float | int] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """The cells of its line in a table."""
        return super().row() | {
            "level": self.level,
            "encoding": self.encoding,
            "samples": self.summary["samples"],
            "cosine": f"{self.summary['cosine']:.6f}",
            "least": f"{self.summary['cosine_min']:.6f}",
            "rel. error": f"{self.summary['relative_error']:.4f}",
            "left over": f"{100 * self.summary['leftover_share']:.2f} %",
            "token norm": f"{self.summary['token_norm']:.4g}",
            "largest": f"{self.summary['token_norm_max']:.4g}",
            "outlier": f"{self.summary['deviation_max']:.1f} sd",
        }


def ls(cache: str | Path | Cache) -> list[ColumnListing]:
    """Every column of every folder of a cache, damaged ones too."""
    return [row for folder, path in _columns(cache) for row in _read(ColumnListing.at(folder, path), folder, _listing)]


def stats(cache: str | Path | Cache) -> list[LevelStats]:
    """Fidelity, norms and outliers of every level, pooled over the blocks; nothing but records is read.

    A damaged column is one row that says so.
    """
    return [row for folder, path in _columns(cache) for row in _read(LevelStats.at(folder, path), folder, _stats)]


def du(cache: str | Path | Cache) -> list[Usage]:
    """What every column takes on disk, from the files that are there; damaged ones too."""
    return [row for folder, path in _columns(cache) for row in _usage(folder, path)]


def _columns(cache: str | Path | Cache) -> Iterator[tuple[CacheFolder, ColumnId]]:
    return ((folder, path) for path, folders in Cache.open(cache).columns.items() for folder in folders)


def _read(known: Summary, folder: CacheFolder, rows: Callable[[Summary, Column], list[Summary]]) -> list[Summary]:
    """`rows` of what is `known` and the opened column; where that is damaged, one row that says so."""
    try:
        column = Column.open(folder, ColumnId(known.name, known.data))
        return rows(replace(known, random=column.random), column)
    except (CacheError, DamageError) as error:
        return [replace(known, damage=str(error))]


def _listing(known: ColumnListing, column: Column) -> list[ColumnListing]:
    manifest, records = column.manifest, column.records.values()
    levels = tuple(manifest.document["levels"])
    info = TeacherReader((column,), SampleTable({}, {}, 0), levels).info
    listing = replace(
        known,
        model=manifest.document["teacher"]["model"],
        weights=manifest.weights,
        width=manifest.width,
        levels=levels,
        grid=info.grid,
        reduction=info.reduction,
        encoding=info.encoding,
        format=manifest.format,
        codec=manifest.layout.codec,
        views=column.views,
        blocks=len(records),
        blocks_planned=column.views * manifest.layout.blocks,
        samples=sum(map(_present, records)),
        samples_planned=column.views * manifest.layout.samples,
        quarantined=len({bad.sample for record in records for bad in record.absent}),
        nbytes=sum(record.nbytes for record in records),
        writers=len(Leases(column.location / "leases").held()),
    )
    return [listing]


def _present(record: BlockRecord) -> int:
    """How many samples a block has, counted by ranges: there may be a million."""
    return sum(stop - start for start, stop in record.present)


def _usage(folder: CacheFolder, path: ColumnId) -> list[Usage]:
    entries = list(folder.at(path).walk())
    kinds = Counter[str]()
    for entry in entries:
        kinds[entry.path.partition("/")[0] if "/" in entry.path else "manifest and calibration"] += entry.bytes
    known = Usage(
        cache=str(folder.location),
        name=path.name,
        data=path.data,
        files=len(entries),
        nbytes=kinds.total(),
        by_kind=dict(sorted(kinds.items())),
    )
    return _read(known, folder, lambda usage, column: [_weighed(usage, column, entries)])


def _weighed(usage: Usage, column: Column, entries: Sequence[Entry]) -> Usage:
    recorded = {f"data/{file.path}" for record in column.records.values() for file in record.files}
    stray = [entry for entry in entries if entry.path.startswith("data/") and entry.path not in recorded]
    present = sum(map(_present, column.records.values()))
    layout = column.manifest.layout
    return replace(
        usage,
        by_level={
            level: present * sum(layout[name].nbytes for name in level_arrays(layout, [level]))
            for level in column.manifest.document["levels"]
        },
        stray=sum(
            entry.bytes for entry in stray if not entry.path.endswith(".json")
        ),  # zarr's documents are no block's
        per_sample=usage.nbytes / present if present else 0.0,
    )


def _stats(known: LevelStats, column: Column) -> list[LevelStats]:
    rows = []
    for level in column.manifest.document["levels"]:
        sums = LevelFidelity()
        for record in column.records.values():
            if str(level) in record.fidelity:
                sums += LevelFidelity.from_json(record.fidelity[str(level)])
        encoding = column.manifest.document["encoding"]["kind"]
        rows.append(replace(known, level=level, encoding=encoding, summary=sums.summary()))
    return rows
