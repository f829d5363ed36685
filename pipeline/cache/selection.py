"""Which columns and samples a reader means: columns by teacher, spec and data, and one table of all their samples.

A column that does not match is refused with the differences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, ColumnId
from pipeline.cache.key import column_document, explain_difference
from pipeline.cache.manifest import CacheError, Manifest, data_name
from pipeline.cache.spec import CacheSpec
from pipeline.images.index import ShardIndex
from sak.errors import UsageError, nearest

Difference = tuple[str, Any, Any]
Numbers = NDArray[np.int64]


class SpecMismatchError(CacheError):
    """A column was made by another spec; `differences` are (field, value in the cache, value in the spec)."""

    def __init__(self, message: str, differences: Sequence[Difference]) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


def select_columns(
    cache: Cache, teachers: Sequence[str] | None = None, spec: CacheSpec | None = None, data_key: str | None = None
) -> dict[str, tuple[Column, ...]]:
    """The columns to read for each teacher: all parts of one spec key, over folders and data sets.

    A teacher is named as in the spec, or with its key (`sam-1f3a...`) where the cache has several of that name.
    UsageError for teachers that are not there, and where a name means several columns.
    """
    paths = [path for path in cache.columns if data_key is None or _is_data(path, data_key)]
    if data_key is not None and not paths:
        have = sorted({path.data for path in cache.columns})
        raise UsageError(f"{cache}: no column of data {data_key}{nearest(data_key, have)}")
    wanted = list(teachers) if teachers is not None else list(spec.teachers) if spec else []
    wanted = wanted or sorted({path.teacher for path in paths})
    if not wanted:
        raise UsageError(f"{cache}: the cache is empty; fill it with `sak-cli extract`")
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"a teacher is named twice in {', '.join(wanted)}")
    chosen = [_one(cache, name, paths, spec) for name in wanted]
    return {column.teacher: _parts(cache, [path for path in paths if path.name == column.name]) for column in chosen}


def _is_data(path: ColumnId, data_key: str) -> bool:
    return bool(data_key) and (path.data.startswith(data_key) or path.data == data_name(data_key))


def _one(cache: Cache, wanted: str, paths: Sequence[ColumnId], spec: CacheSpec | None) -> ColumnId:
    """The one column that `wanted` means, by the first of its parts."""
    columns = {path.name: path for path in reversed(paths) if wanted in (path.teacher, path.name)}
    if not columns:
        known = sorted({path.teacher for path in paths})
        raise UsageError(f"{cache}: no features of teacher {wanted!r}{nearest(wanted, known)}")
    manifests = {name: cache.columns[columns[name]][0].manifest(columns[name]) for name in sorted(columns)}
    if spec is not None:
        manifests = _matching(cache, next(iter(columns.values())).teacher, manifests, spec)
    names = list(manifests)
    if len(names) > 1:
        first, second = (manifests[name].document for name in names[:2])
        differences = "; ".join(f"{field} {a!r} or {b!r}" for field, a, b in explain_difference(first, second))
        raise UsageError(
            f"{cache}: teacher {wanted!r} has {len(names)} columns, {', '.join(names)}: "
            f"{differences or 'equal specs'}; name one of them with its key, or give the spec"
        )
    return columns[names[0]]


def _matching(cache: Cache, teacher: str, manifests: Mapping[str, Manifest], spec: CacheSpec) -> dict[str, Manifest]:
    if teacher not in spec.teachers:
        raise UsageError(f"the spec has no teacher {teacher!r}{nearest(teacher, spec.teachers)}")
    differences = {name: spec_differences(manifest, teacher, spec) for name, manifest in manifests.items()}
    matching = {name: manifest for name, manifest in manifests.items() if not differences[name]}
    if not matching:
        name = min(manifests, key=lambda name: len(differences[name]))
        said = "; ".join(f"{field}: cache {there!r}, spec {wanted!r}" for field, there, wanted in differences[name])
        raise SpecMismatchError(
            f"{cache}: columns/{name} was made by another spec: {said}; extract it again with --teachers {teacher}, "
            "or use the spec it was made by",
            differences[name],
        )
    return matching


def spec_differences(manifest: Manifest, teacher: str, spec: CacheSpec) -> list[Difference]:
    """Where a column differs from what a spec asks for, as (field, in the cache, in the spec).

    What a spec does not say itself (digests of weights, revisions of code) is not compared: extraction does that.
    """
    document, wanted = manifest.document, spec.teachers[teacher]
    made = document["teacher"]
    asked = column_document(
        wanted,
        spec,
        weights_sha256=made["weights_sha256"],
        teacher_revision=made["revision"],
        custom_source_sha256=made["source_sha256"],
    )
    differing = explain_difference(document, asked)
    if manifest.weights != wanted.weights and (manifest.random or wanted.weights.startswith("random")):
        differing.append(("teacher.weights", manifest.weights, wanted.weights))
    return differing


def _parts(cache: Cache, paths: Sequence[ColumnId]) -> tuple[Column, ...]:
    """Every part of a column; parts of one data set in several folders must share their calibration."""
    parts = [Column.open(layer, path) for path in paths for layer in cache.columns[path]]
    by_data: dict[str, Column] = {}
    for part in parts:
        first = by_data.setdefault(part.id.data, part)
        digests = {record.calibration for column in (first, part) for record in column.records.values()}
        if len(digests) > 1:
            raise CacheError(
                f"{part.location}: its blocks and those of {first.location} come from different calibrations, "
                "which must not be mixed; read one of the two caches alone"
            )
    return tuple(parts)


@dataclass(frozen=True)
class SampleTable:
    """All samples of a cache's columns, numbered once: one data set's, or the union of several by sample key.

    `rows[data]` (N,) gives each sample's number in that data set, -1 where it has none; None where they are equal.
    Samples of the largest data set come first, in its order, then those that only others have.
    """

    indices: Mapping[str, ShardIndex]
    rows: Mapping[str, Numbers | None]
    samples: int

    @classmethod
    def of(cls, indices: Mapping[str, ShardIndex]) -> "SampleTable":
        """CacheError where two data sets have different images under one key."""
        known: dict[str, Numbers] = {}
        count = 0
        for name in sorted(indices, key=lambda name: (-len(indices[name]), name)):
            numbers = _numbers(indices, known, name)
            new = numbers < 0
            numbers[new] = count + np.arange(int(new.sum()))
            known[name] = numbers
            count += int(new.sum())
        plain = np.arange(count)
        rows = {
            name: None if np.array_equal(numbers, plain) else _inverse(numbers, count)
            for name, numbers in known.items()
        }
        return cls(dict(indices), rows, count)

    def relocated(self, data: str) -> "SampleTable":
        """The same samples, their images read from a copy at `data`; UsageError where they are of several sets."""
        if len(self.indices) > 1:
            raise UsageError(
                f"the features are of {len(self.indices)} data sets, {', '.join(self.indices)}, which do not lie in "
                "one place; choose one with data_key= to say where it is"
            )
        return replace(self, indices={name: index.relocated(data) for name, index in self.indices.items()})

    def rows_in(self, data: str, samples: Numbers) -> Numbers:
        """The numbers that samples have in one data set, -1 where they have none."""
        rows = self.rows[data]
        return samples if rows is None else rows[samples]

    def widen(self, data: str, of_rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over one data set (its samples,) as a mask over all (N,)."""
        rows = self.rows[data]
        return of_rows if rows is None else (rows >= 0) & of_rows[rows]

    def image(self, sample: int) -> tuple[ShardIndex, int]:
        """Where a sample's image is: a data set's index, and the sample's number in it."""
        for name, index in self.indices.items():
            row = int(self.rows_in(name, np.asarray([sample]))[0])
            if row >= 0:
                return index, row
        raise IndexError(f"sample {sample} of {self.samples}")

    def key(self, sample: int) -> str:
        """The key of one sample."""
        index, row = self.image(sample)
        return index.key(row)

    def keys(self, samples: Sequence[int] | Numbers) -> list[str]:
        """The keys of some samples."""
        numbers = np.asarray(samples, np.int64)
        if len(self.indices) == 1:
            return next(iter(self.indices.values())).keys(numbers)
        return [self.key(sample) for sample in numbers.tolist()]

    def locate(self, keys: Sequence[str]) -> Numbers:
        """The samples with these keys, -1 for unknown ones."""
        numbers = np.full(len(keys), -1)
        for name, index in self.indices.items():
            rows, located = self.rows[name], index.locate(keys)
            known = (located >= 0) & (numbers < 0)
            numbers[known] = located[known] if rows is None else _inverse(rows, len(index))[located[known]]
        return numbers


def _numbers(indices: Mapping[str, ShardIndex], known: Mapping[str, Numbers], name: str) -> Numbers:
    """The number of each sample of data set `name`; -1 for those that no known data set has."""
    index = indices[name]
    keys = index.keys() if known else []
    numbers = np.full(len(index), -1)
    for other, others_numbers in known.items():
        rows = indices[other].locate(keys)
        shared = np.flatnonzero(rows >= 0)
        for row in shared.tolist():
            if index.digest(row) != indices[other].digest(int(rows[row])):
                raise CacheError(
                    f"sample {keys[row]!r} has different images in data {name} and {other}; "
                    "read one of them alone with data_key="
                )
        numbers[shared] = others_numbers[rows[shared]]
    return numbers


def _inverse(numbers: Numbers, count: int) -> Numbers:
    """`inverse[numbers[i]] == i`, -1 elsewhere."""
    inverse = np.full(count, -1)
    known = np.flatnonzero(numbers >= 0)
    inverse[numbers[known]] = known
    return inverse
