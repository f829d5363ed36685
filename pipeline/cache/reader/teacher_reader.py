"""One teacher as a reader sees it: the parts of its column, and which of them holds which sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.column import Column
from pipeline.cache.column_codec import level_arrays, reduction_of
from pipeline.cache.manifest import CacheError
from pipeline.cache.reader.process import Piece, StoredPart
from pipeline.cache.selection import Numbers, SampleTable
from pipeline.cache.stores.base import ROW, Rows
from sak.errors import UsageError
from sak.losses.projection import Grid

NOWHERE = -1


@dataclass(frozen=True)
class CachedTeacher:
    """What training and reports must know of a cached teacher.

    `width` is the channels of its maps, `grid` (height, width) of the stored ones, `teacher_grid` of its own.
    `reduction` is native, projection or area. `random` marks weights that know nothing.
    """

    name: str
    spec_key: str
    width: int
    levels: tuple[int, ...]
    grid: Grid
    teacher_grid: Grid
    reduction: str
    encoding: str
    random: bool
    document: Mapping[str, Any]


@dataclass(frozen=True)
class TeacherReader:
    """Reads the wanted levels of one teacher, by the sample numbers of `sample_table`."""

    columns: tuple[Column, ...]
    sample_table: SampleTable
    levels: tuple[int, ...]

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are read."""
        return level_arrays(self.columns[0].manifest.layout, self.levels)

    @cached_property
    def sample_bytes(self) -> int:
        """Encoded bytes of one sample in the wanted levels."""
        return sum(self.columns[0].manifest.layout[name].nbytes for name in self.arrays)

    @cached_property
    def info(self) -> CachedTeacher:
        """What training and reports must know of the teacher."""
        manifest = self.columns[0].manifest
        reduction = reduction_of(manifest.document, manifest.grid)
        encoding = manifest.document["encoding"]
        pca = f" pca-{encoding['pca']}" if encoding["pca"] else ""
        return CachedTeacher(
            name=manifest.teacher,
            spec_key=manifest.spec_key,
            width=manifest.width,
            levels=self.levels,
            grid=reduction.stored_grid,
            teacher_grid=manifest.grid,
            reduction=reduction.effective,
            encoding=f"{encoding['kind']}{pca}",
            random=manifest.random,
            document=manifest.document,
        )

    @property
    def views(self) -> int:
        """One more than the highest view of which anything is there."""
        return max(column.views for column in self.columns)

    def parts(self, view: int) -> NDArray[np.int8]:
        """(N,): the number of the part that holds each sample's view, the foremost where several do; -1 for none."""
        if view not in self._parts:
            parts = np.full(self.sample_table.samples, NOWHERE, np.int8)
            for number, column in reversed(list(enumerate(self.columns))):
                parts[self.sample_table.widen(column.id.data, column.present(view))] = number
            self._parts[view] = parts
        return self._parts[view]

    @cached_property
    def _parts(self) -> dict[int, NDArray[np.int8]]:
        return {}

    def missing(self, view: int) -> NDArray[np.bool_]:
        """(N,): samples neither present nor known to be unusable; extraction is not through with them."""
        missing = self.parts(view) == NOWHERE
        for column in self.columns:
            missing &= ~self.sample_table.widen(column.id.data, column.absent(view))
        return missing

    @cached_property
    def stored(self) -> tuple[StoredPart, ...]:
        """What is read of each part."""
        return tuple(StoredPart(column.id.path, column.store, self.arrays) for column in self.columns)

    def pieces(self, view: int, samples: Numbers) -> tuple[list[Piece], Numbers]:
        """What to read where for samples that are present, and the part that each is in (n,)."""
        parts = self.parts(view)[samples].astype(np.int64)
        self._refuse_absent(samples[parts == NOWHERE], view)
        pieces = []
        for part in np.unique(parts).tolist():
            rows = parts == part
            numbers = self.sample_table.rows_in(self.columns[part].id.data, samples[rows])
            pieces.append(Piece(part, numbers, None if rows.all() else rows))
        return pieces, parts

    def stored_views(self, view: int, samples: Numbers, parts: Numbers) -> Rows:
        """(n,) rows of box, flip and CRC."""
        rows = np.empty(len(samples), ROW)
        for part in np.unique(parts).tolist():
            here = parts == part
            column = self.columns[part]
            rows[here] = column.stored_views(view, self.sample_table.rows_in(column.id.data, samples[here]))
        return rows

    def forget(self) -> None:
        """Close the files of every part."""
        for column in self.columns:
            column.store.forget()

    def _refuse_absent(self, samples: Numbers, view: int) -> None:
        if not len(samples):
            return
        sample = int(samples[0])
        why = "was not extracted yet"
        for column in self.columns:
            row = int(self.sample_table.rows_in(column.id.data, samples[:1])[0])
            absent = [bad for record in column.records.values() for bad in record.absent if record.view == view]
            why = next((f"is in quarantine: {bad.reason}" for bad in absent if bad.sample == row), why)
        raise CacheError(
            f"{self.columns[0].id.name}: sample {self.sample_table.key(sample)!r}, view {view}, {why}; "
            "read only the samples that `samples_in` lists"
        )


def wanted_levels(column: Column, levels: Sequence[int] | None) -> tuple[int, ...]:
    """The levels to read of a column, ascending; UsageError where one is not in it."""
    have = tuple(int(level) for level in column.manifest.document["levels"])
    if levels is None:
        return have
    wanted = tuple(sorted(set(levels)))
    unknown = [level for level in wanted if level not in have]
    if unknown or not wanted:
        raise UsageError(
            f"{column.id.name} has levels {', '.join(map(str, have))}, "
            f"not {', '.join(map(str, unknown)) or 'none'}; choose among them, or extract others"
        )
    return wanted
