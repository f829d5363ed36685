"""`FeatureCache`: a cache opened for reading, by training and by people. Reading never writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from functools import cached_property
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache
from pipeline.cache.key import explain_difference
from pipeline.cache.manifest import CacheError
from pipeline.cache.reader.batch import BatchDecoder, EncodedBatch
from pipeline.cache.reader.process import ArraySizes, Contents, Parts, Pieces, read_pieces
from pipeline.cache.reader.teacher_reader import NOWHERE, CachedTeacher, TeacherReader, wanted_levels
from pipeline.cache.selection import Numbers, SampleTable, select_columns
from pipeline.cache.spec import CacheSpec
from pipeline.cache.stores.base import Arrays, StoredViews
from pipeline.images.source import ReplayError
from pipeline.images.views import ViewPolicy
from sak.errors import UsageError
from sak.losses.projection import Targets

Levels = Sequence[int] | Mapping[str, Sequence[int]]


def levels_of(levels: Levels | None, teacher: str, selected: Mapping[str, tuple[Column, ...]]) -> Sequence[int] | None:
    """The levels asked of one teacher, None for all of them; UsageError where others than `selected` are given some."""
    if not isinstance(levels, Mapping):
        return levels
    unknown = sorted(set(levels) - set(selected))
    if unknown:
        raise UsageError(f"levels are given for {', '.join(unknown)}, which is not among {', '.join(selected)}")
    return levels.get(teacher)


def one_pixel_recipe(selected: Mapping[str, tuple[Column, ...]]) -> None:
    """CacheError unless all columns show the same pixels of the same views."""
    recipes = {
        columns[0].id.name: {name: columns[0].manifest.document[name] for name in ("views", "pixels")}
        for columns in selected.values()
    }
    (first, expected), *others = recipes.items()
    for name, recipe in others:
        differing = explain_difference(expected, recipe)
        if differing:
            differences = "; ".join(f"{field}: {a!r} and {b!r}" for field, a, b in differing)
            raise CacheError(f"{first} and {name} saw different views: {differences}; extract one of them again")


def count_views(cache: str, readers: Mapping[str, TeacherReader], views: int | None, *, allow_partial: bool) -> int:
    """How many views are read: those asked for, or all that are complete; with `allow_partial` all that were begun."""
    begun = min(reader.views for reader in readers.values())
    incomplete = (view for view in range(begun) if not allow_partial and _missing(readers, view))
    complete = next(incomplete, begun)
    if complete >= max(1, views or 1):
        return views or complete
    missing = _missing(readers, complete) or [
        f"{name} all of it" for name, reader in readers.items() if reader.views <= complete
    ]
    remedy = "extract the rest" if allow_partial else "extract the rest, or read what there is with --allow-partial"
    raise CacheError(f"{cache}: view {complete} is incomplete: {', '.join(missing)}; {remedy}")


def _missing(readers: Mapping[str, TeacherReader], view: int) -> list[str]:
    counts = {teacher: int(reader.missing(view).sum()) for teacher, reader in readers.items()}
    return [
        f"{teacher} lacks {count} of {readers[teacher].sample_table.samples} samples"
        for teacher, count in counts.items()
        if count
    ]


@dataclass(frozen=True)
class Request:
    """Samples (n,) of a view, what to read for them, and by teacher the part (n,) that each is in."""

    samples: Numbers
    view: int
    pieces: Pieces
    parts: Mapping[str, Numbers]


@dataclass(frozen=True)
class FeatureCache:
    """The wanted teachers and levels of a cache, over the union of its data sets and folders.

    Samples are numbered by `sample_table`; `samples_in(view)` lists those that can be read. `views` is K: epoch e reads
    view e mod K. `partial` tells that something is missing which the cache may still get. Safe to share between
    threads, fork and pickle.
    """

    cache: Cache
    readers: Mapping[str, TeacherReader]
    sample_table: SampleTable
    views: int
    partial: bool
    _read: dict[int, int] = default(default_factory=dict)  # by thread, so that no two write one number

    @classmethod
    def open(
        cls,
        path: str | Path | Cache,
        teachers: Sequence[str] | None = None,
        levels: Levels | None = None,
        *,
        spec: CacheSpec | None = None,
        allow_partial: bool = False,
        data_key: str | None = None,
        views: int | None = None,
    ) -> "FeatureCache":
        """Open a cache (`rw:ro` overlays), for all its teachers and levels or those named.

        `levels` are for every teacher, or a mapping by teacher. `spec` refuses columns that another one made, with
        the fields that differ side by side (SpecMismatchError). `data_key` (or its first digits) reads one data set
        alone. `views` must be there; by default all complete ones are read. CacheError where samples are missing,
        unless `allow_partial`.
        """
        opened = Cache.open(path)
        selected = select_columns(opened, teachers, spec, data_key)
        one_pixel_recipe(selected)
        data = {column.id.data for columns in selected.values() for column in columns}
        sample_table = SampleTable.of({name: opened.index(name) for name in sorted(data)})
        readers = {
            teacher: TeacherReader(
                columns, sample_table, wanted_levels(columns[0], levels_of(levels, teacher, selected))
            )
            for teacher, columns in selected.items()
        }
        count = count_views(str(opened), readers, views, allow_partial=allow_partial)
        partial = any(bool(reader.missing(view).any()) for reader in readers.values() for view in range(count))
        features = cls(opened, readers, sample_table, count, partial)
        if not len(features.samples):
            raise CacheError(f"{opened}: no sample has features of {', '.join(readers)} in view 0; extract them")
        return features

    @cached_property
    def teachers(self) -> dict[str, CachedTeacher]:
        """Teacher -> width, grid, levels, whether its weights are random, ..."""
        return {teacher: reader.info for teacher, reader in self.readers.items()}

    @property
    def columns(self) -> dict[str, tuple[Column, ...]]:
        """Teacher -> its columns, one for each data set and folder; each opens as zarr or webdataset."""
        return {teacher: reader.columns for teacher, reader in self.readers.items()}

    @cached_property
    def view_policy(self) -> ViewPolicy:
        """How the views were drawn."""
        return ViewPolicy(**next(iter(self.teachers.values())).document["views"])

    @property
    def samples(self) -> Numbers:
        """The samples that can be read in view 0, ascending."""
        return self.samples_in(0)

    def samples_in(self, view: int) -> Numbers:
        """The samples that every wanted teacher has in `view`, ascending; never one in quarantine."""
        if not 0 <= view < self.views:
            raise IndexError(f"view {view} of {self.views}")
        if view not in self._samples:
            present = np.ones(self.sample_table.samples, bool)
            for reader in self.readers.values():
                present &= reader.parts(view) != NOWHERE
            self._samples[view] = np.flatnonzero(present)
        return self._samples[view]

    @cached_property
    def _samples(self) -> dict[int, Numbers]:
        return {}

    @property
    def block(self) -> int:
        """Samples of the largest block: what the reading order takes together."""
        return max(column.manifest.layout.block for reader in self.readers.values() for column in reader.columns)

    @property
    def sample_bytes(self) -> int:
        """Encoded bytes of one sample, all wanted teachers and levels."""
        return sum(reader.sample_bytes for reader in self.readers.values())

    @property
    def bytes_read(self) -> int:
        """Encoded bytes read by this object so far, in this process."""
        return sum(list(self._read.values()))

    @cached_property
    def decoder(self) -> BatchDecoder:
        """Encoded arrays to targets."""
        return BatchDecoder(self.readers)

    def read(
        self, samples: Sequence[int] | Numbers, view: int = 0, out: Mapping[str, Arrays] | None = None
    ) -> EncodedBatch:
        """Some samples' features, in the order asked, checked; into `out` (teacher -> arrays) where given.

        CacheError names a sample that is not there, DamageError the file and sample of damaged bytes, ReplayError a
        sample whose pixels differ between teachers.
        """
        wanted = self.request(samples, view)
        contents = out or ArraySizes.of(self.stored, len(wanted.samples)).fresh()
        read_pieces(self.stored, view, wanted.pieces, contents)
        return self.batch(wanted, contents)

    @cached_property
    def stored(self) -> Parts:
        """What is read of each part of each teacher's column."""
        return {teacher: reader.stored for teacher, reader in self.readers.items()}

    def request(self, samples: Sequence[int] | Numbers, view: int) -> Request:
        """What to read for some samples; CacheError names one that is not there."""
        numbers = np.asarray(samples, np.int64).reshape(-1)
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.sample_table.samples:
            raise IndexError(f"samples are numbered from 0 to {self.sample_table.samples - 1}")
        if not 0 <= view < self.views:
            raise IndexError(f"view {view} of {self.views}")
        located = {teacher: reader.pieces(view, numbers) for teacher, reader in self.readers.items()}
        pieces = {teacher: of_teacher for teacher, (of_teacher, _) in located.items()}
        return Request(numbers, view, pieces, {teacher: parts for teacher, (_, parts) in located.items()})

    def batch(self, request: Request, contents: Contents) -> EncodedBatch:
        """The batch of what was read for a request."""
        samples, view = request.samples, request.view
        self._read[get_ident()] = self._read.get(get_ident(), 0) + self.sample_bytes * len(samples)
        views = self._stored_views(view, samples, request.parts)
        keys, mask = self.sample_table.keys(samples), np.ones(len(samples), bool)
        arrays = {teacher: dict(of_teacher) for teacher, of_teacher in contents.items()}
        return EncodedBatch(samples, keys, view, views, mask, dict(request.parts), arrays, self.decoder)

    def _stored_views(self, view: int, samples: Numbers, parts: Mapping[str, Numbers]) -> StoredViews:
        """Box, flip and CRC, which must be the same for every teacher."""
        rows = {teacher: reader.stored_views(view, samples, parts[teacher]) for teacher, reader in self.readers.items()}
        (first, expected), *others = rows.items()
        for teacher, stored in others:
            differing = np.flatnonzero(stored != expected)
            if len(differing):
                key = self.sample_table.key(int(samples[differing[0]]))
                raise ReplayError(
                    f"sample {key!r}, view {view}: teachers {first} and {teacher} saw different pixels; "
                    "extract one of them again"
                )
        return StoredViews(expected, view, self.view_policy.size)

    def __len__(self) -> int:
        """How many samples view 0 has."""
        return len(self.samples)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """The `item`-th sample of view 0, for a PyTorch DataLoader; see `items`."""
        return self.items([item])[0]

    def items(self, items: Sequence[int], view: int = 0) -> list[dict[str, Any]]:
        """Samples by their position in `samples_in(view)`, each a dict that the default collation takes.

        `key`, `sample`, `crc`, `box`, `flip`, `features` (teacher -> array name -> array) and `parts`; collated,
        `decode(batch["features"], batch["parts"])` makes targets of them. Memory is fresh each time.
        """
        batch = self.read(self.samples_in(view)[np.asarray(items, np.int64)], view)
        return [
            {
                "key": batch.keys[row],
                "sample": int(batch.samples[row]),
                "crc": int(batch.views.crcs[row]),
                "box": batch.views.boxes[row].astype(np.int64),
                "flip": bool(batch.views.flips[row]),
                "features": {
                    teacher: {name: array[row] for name, array in arrays.items()}
                    for teacher, arrays in batch.arrays.items()
                },
                "parts": {teacher: int(parts[row]) for teacher, parts in batch.parts.items()},
            }
            for row in range(len(batch))
        ]

    __getitems__ = items  # what a DataLoader asks for many at once

    def decode(
        self,
        features: Mapping[str, Mapping[str, Tensor]],
        parts: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Targets]:
        """Collated items to targets, on the device where `features` are."""
        return self.decoder(features, {teacher: part.cpu().numpy() for teacher, part in parts.items()}, dtype)

    def describe(self) -> dict[str, Any]:
        """What was read, for a run's `run.json`: columns by name and data, views, how many samples of how many."""
        columns = sorted({column.id.path for reader in self.readers.values() for column in reader.columns})
        return {
            "cache": str(self.cache),
            "columns": columns,
            "levels": {teacher: list(reader.levels) for teacher, reader in self.readers.items()},
            "random": [teacher for teacher, info in self.teachers.items() if info.random],
            "views": self.views,
            "samples": [len(self.samples_in(view)) for view in range(self.views)],
            "samples_planned": self.sample_table.samples,
            "partial": self.partial,
        }

    def forget(self) -> None:
        """Close all files; the next read opens them again."""
        for reader in self.readers.values():
            reader.forget()
