"""`cache ls`, `du` and `stats`: what a cache holds, what it weighs, and how faithful it is."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.column import Column
from pipeline.cache.column_codec import LevelFidelity, level_arrays
from pipeline.cache.folder import Cache, CacheFolder, ColumnPath
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import CacheError
from pipeline.cache.reader.teacher_reader import TeacherReader
from pipeline.cache.selection import SampleTable
from pipeline.cache.stores.base import DamageError


@dataclass(frozen=True)
class ColumnListing:
    """One column in one folder, as `ls` shows it; `nbytes` are those its records vouch for.

    `damage` says why nothing else is known of a column whose manifest or records cannot be read.
    """

    cache: str
    name: str
    teacher: str
    data: str
    model: str = ""
    weights: str = ""
    random: bool = False
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
    damage: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every block of every view that was begun is there."""
        return self.damage is None and self.blocks == self.blocks_planned

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"complete": self.complete}


@dataclass(frozen=True)
class Usage:
    """What one column takes on disk, by kind of file, and by level of the encoded arrays; `stray` is of no block.

    `damage` says why of a column whose manifest or records cannot be read only files and bytes are known.
    """

    cache: str
    name: str
    data: str
    random: bool
    files: int
    nbytes: int
    by_kind: dict[str, int]
    by_level: dict[int, int]
    stray: int
    per_sample: float
    damage: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LevelStats:
    """How faithful one level of a column is: `summary` as `LevelFidelity.summary` gives it.

    A column whose manifest or records cannot be read is one row: level 0, an empty summary, and `damage` says why.
    """

    cache: str
    name: str
    data: str
    random: bool
    level: int
    encoding: str
    summary: dict[str, float | int]
    damage: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ls(place: str | Path | Cache) -> list[ColumnListing]:
    """Every column of every folder of a cache, damaged ones too."""
    found = Cache.open(place).columns.items()
    return [_listed(layer, column_place) for column_place, layers in found for layer in layers]


def du(place: str | Path | Cache) -> list[Usage]:
    """What every column takes on disk, from the files that are there; damaged ones too."""
    found = Cache.open(place).columns.items()
    return [_used(layer, column_place) for column_place, layers in found for layer in layers]


def stats(place: str | Path | Cache) -> list[LevelStats]:
    """Fidelity, norms and outliers of every level, pooled over the blocks; nothing but records is read.

    A damaged column is one row that says so.
    """
    found = Cache.open(place).columns.items()
    return [row for column_place, layers in found for layer in layers for row in _faithful(layer, column_place)]


def _listed(folder: CacheFolder, place: ColumnPath) -> ColumnListing:
    try:
        return _listing(Column.open(folder, place))
    except (CacheError, DamageError) as error:
        return ColumnListing(str(folder.location), place.name, place.teacher, place.data, damage=str(error))


def _listing(column: Column) -> ColumnListing:
    manifest, records = column.manifest, column.records
    levels = tuple(manifest.document["levels"])
    info = TeacherReader((column,), SampleTable({}, {}, 0), levels).info
    return ColumnListing(
        cache=str(column.folder.location),
        name=column.place.name,
        teacher=manifest.teacher,
        data=column.place.data,
        model=manifest.document["teacher"]["model"],
        weights=manifest.weights,
        random=manifest.random,
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
        samples=sum(stop - start for record in records.values() for start, stop in record.present),
        samples_planned=column.views * manifest.layout.samples,
        quarantined=len({each.sample for record in records.values() for each in record.absent}),
        nbytes=sum(record.nbytes for record in records.values()),
        writers=len(Leases(column.location / "leases").held()),
    )


def _used(folder: CacheFolder, place: ColumnPath) -> Usage:
    try:
        return _usage(Column.open(folder, place))
    except (CacheError, DamageError) as error:
        kinds = Counter[str]()
        files = list(folder.at(place).walk())
        for entry in files:
            kinds[_kind(entry.path)] += entry.bytes
        return Usage(
            cache=str(folder.location),
            name=place.name,
            data=place.data,
            random=False,
            files=len(files),
            nbytes=kinds.total(),
            by_kind=dict(sorted(kinds.items())),
            by_level={},
            stray=0,
            per_sample=0.0,
            damage=str(error),
        )


def _usage(column: Column) -> Usage:
    kinds: Counter[str] = Counter()
    recorded = {f"data/{file.path}" for record in column.records.values() for file in record.files}
    files = stray = 0
    for entry in column.location.walk():
        files += 1
        kind = _kind(entry.path)
        kinds[kind] += entry.bytes
        if kind == "data" and entry.path not in recorded and not _is_metadata(entry.path):
            stray += entry.bytes
    present = sum(stop - start for record in column.records.values() for start, stop in record.present)
    layout = column.manifest.layout
    return Usage(
        cache=str(column.folder.location),
        name=column.place.name,
        data=column.place.data,
        random=column.random,
        files=files,
        nbytes=kinds.total(),
        by_kind=dict(sorted(kinds.items())),
        by_level={
            level: present * sum(layout[name].nbytes for name in level_arrays(layout, [level]))
            for level in column.manifest.document["levels"]
        },
        stray=stray,
        per_sample=kinds.total() / present if present else 0.0,
    )


def _kind(path: str) -> str:
    return path.partition("/")[0] if "/" in path else "manifest and calibration"


def _is_metadata(path: str) -> bool:
    return path.endswith(".json")


def _faithful(folder: CacheFolder, place: ColumnPath) -> list[LevelStats]:
    try:
        return list(_stats(Column.open(folder, place)))
    except (CacheError, DamageError) as error:
        return [LevelStats(str(folder.location), place.name, place.data, False, 0, "", {}, damage=str(error))]


def _stats(column: Column) -> Iterator[LevelStats]:
    encoding = column.manifest.document["encoding"]["kind"]
    for level in column.manifest.document["levels"]:
        sums = LevelFidelity()
        for record in column.records.values():
            if str(level) in record.fidelity:
                sums += LevelFidelity.from_json(record.fidelity[str(level)])
        yield LevelStats(
            cache=str(column.folder.location),
            name=column.place.name,
            data=column.place.data,
            random=column.random,
            level=level,
            encoding=encoding,
            summary=sums.summary(),
        )
