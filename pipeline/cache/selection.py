"""Which columns a reader means: by teacher, by spec, by data; what does not match is refused with the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, ColumnPath
from pipeline.cache.key import column_document, explain_difference
from pipeline.cache.manifest import CacheError, Manifest, data_name
from pipeline.cache.spec import CacheSpec
from pipeline.images.index import ShardIndex
from sak.errors import UsageError, nearest

Difference = tuple[str, Any, Any]


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
    places = [column for column in cache.columns if data_key is None or _is_data(column, data_key)]
    if data_key is not None and not places:
        have = sorted({place.data for place in cache.columns})
        raise UsageError(f"{cache}: no column of data {data_key}{nearest(data_key, have)}")
    wanted = list(teachers) if teachers is not None else list(spec.teachers) if spec else []
    if not wanted:
        wanted = sorted({place.teacher for place in places})
    if not wanted:
        raise UsageError(f"{cache}: the cache is empty; fill it with `sak-cli extract`")
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"a teacher is named twice in {', '.join(wanted)}")
    return {_teacher(name, places): _parts(cache, _one(cache, name, places, spec), places) for name in wanted}


def _is_data(place: ColumnPath, data_key: str) -> bool:
    return bool(data_key) and (place.data.startswith(data_key) or place.data == data_name(data_key))


def _teacher(wanted: str, places: Sequence[ColumnPath]) -> str:
    return next((place.teacher for place in places if place.name == wanted), wanted)


def _one(cache: Cache, wanted: str, places: Sequence[ColumnPath], spec: CacheSpec | None) -> str:
    """The name of the one column that `wanted` means."""
    names = sorted({place.name for place in places if wanted in (place.teacher, place.name)})
    if not names:
        known = sorted({place.teacher for place in places})
        raise UsageError(f"{cache}: no features of teacher {wanted!r}{nearest(wanted, known)}")
    if spec is not None:
        names = _matching(cache, _teacher(wanted, places), names, places, spec)
    if len(names) > 1:
        raise UsageError(
            f"{cache}: teacher {wanted!r} has {len(names)} columns, {', '.join(names)}: "
            f"{_told_apart(cache, names, places)}; name one of them with its key, or give the spec"
        )
    return names[0]


def _matching(
    cache: Cache, teacher: str, names: Sequence[str], places: Sequence[ColumnPath], spec: CacheSpec
) -> list[str]:
    if teacher not in spec.teachers:
        raise UsageError(f"the spec has no teacher {teacher!r}{nearest(teacher, spec.teachers)}")
    differences = {name: spec_differences(_manifest(cache, name, places), teacher, spec) for name in names}
    matching = [name for name in names if not differences[name]]
    if not matching:
        name = min(names, key=lambda each: len(differences[each]))
        told = "; ".join(f"{field}: cache {there!r}, spec {wanted!r}" for field, there, wanted in differences[name])
        raise SpecMismatchError(
            f"{cache}: columns/{name} was made by another spec: {told}; extract it again with --teachers {teacher}, "
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


def _told_apart(cache: Cache, names: Sequence[str], places: Sequence[ColumnPath]) -> str:
    first, second = (_manifest(cache, name, places).document for name in names[:2])
    return "; ".join(f"{field} {a!r} or {b!r}" for field, a, b in explain_difference(first, second)) or "equal specs"


def _manifest(cache: Cache, name: str, places: Sequence[ColumnPath]) -> Manifest:
    place = next(place for place in places if place.name == name)
    return cache.columns[place][0].manifest(place)


def _parts(cache: Cache, name: str, places: Sequence[ColumnPath]) -> tuple[Column, ...]:
    """Every part of a column; parts of one data set in several folders must share their calibration."""
    parts = [Column.open(layer, place) for place in places if place.name == name for layer in cache.columns[place]]
    by_data: dict[str, Column] = {}
    for part in parts:
        first = by_data.setdefault(part.place.data, part)
        digests = {record.calibration for each in (first, part) for record in each.records.values()}
        if len(digests) > 1:
            raise CacheError(
                f"{part.location}: its blocks and those of {first.location} come from different calibrations, "
                "which must not be mixed; read one of the two caches alone"
            )
    return tuple(parts)


# All samples that a cache's columns speak of, numbered once: one data set's, or the union of several by sample key.

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class SampleTable:
    """`rows[data]` (N,) gives each sample's number in that data set, -1 where it has none; None where they are equal.

    Samples of the largest data set come first, in its order, then those that only others have.
    """

    indices: Mapping[str, ShardIndex]
    rows: Mapping[str, Numbers | None]
    samples: int

    @classmethod
    def of(cls, indices: Mapping[str, ShardIndex]) -> "SampleTable":
        """CacheError where two data sets have different images under one key."""
        names = sorted(indices, key=lambda name: (-len(indices[name]), name))
        found = {names[0]: np.arange(len(indices[names[0]]))}
        count = len(indices[names[0]])
        for name in names[1:]:
            numbers = _numbers(indices, found, name)
            new = numbers < 0
            numbers[new] = count + np.arange(int(new.sum()))
            found[name] = numbers
            count += int(new.sum())
        rows = {name: None if _is_plain(each, count) else _inverse(each, count) for name, each in found.items()}
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
            rows, found = self.rows[name], index.locate(keys)
            known = (found >= 0) & (numbers < 0)
            numbers[known] = found[known] if rows is None else _inverse(rows, len(index))[found[known]]
        return numbers


def _numbers(indices: Mapping[str, ShardIndex], found: Mapping[str, Numbers], name: str) -> Numbers:
    """The universe's number of each sample of data set `name`; -1 for those no other has had yet."""
    index = indices[name]
    keys = index.keys()
    numbers = np.full(len(index), -1)
    for other, known in found.items():
        rows = indices[other].locate(keys)
        shared = np.flatnonzero(rows >= 0)
        for row in shared.tolist():
            if index.digest(row) != indices[other].digest(int(rows[row])):
                raise CacheError(
                    f"sample {keys[row]!r} has different images in data {name} and {other}; "
                    "read one of them alone with data_key="
                )
        numbers[shared] = known[rows[shared]]
    return numbers


def _is_plain(numbers: Numbers, count: int) -> bool:
    return len(numbers) == count and bool((numbers == np.arange(count)).all())


def _inverse(numbers: Numbers, count: int) -> Numbers:
    """`inverse[numbers[i]] == i`, -1 elsewhere."""
    inverse = np.full(count, -1)
    known = np.flatnonzero(numbers >= 0)
    inverse[numbers[known]] = known
    return inverse
