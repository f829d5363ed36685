"""Which columns a reader means: by teacher, by spec, by data; what does not match is refused with the differences."""

from collections.abc import Sequence
from typing import Any

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, ColumnPlace
from pipeline.cache.key import column_document, explain_difference
from pipeline.cache.manifest import Manifest, data_name
from pipeline.cache.sealed import CacheError
from pipeline.cache.spec import CacheSpec
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
    places = [place for place in cache.columns if data_key is None or _is_data(place, data_key)]
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


def _is_data(place: ColumnPlace, data_key: str) -> bool:
    return bool(data_key) and (place.data.startswith(data_key) or place.data == data_name(data_key))


def _teacher(wanted: str, places: Sequence[ColumnPlace]) -> str:
    return next((place.teacher for place in places if place.name == wanted), wanted)


def _one(cache: Cache, wanted: str, places: Sequence[ColumnPlace], spec: CacheSpec | None) -> str:
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
    cache: Cache, teacher: str, names: Sequence[str], places: Sequence[ColumnPlace], spec: CacheSpec
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


def _told_apart(cache: Cache, names: Sequence[str], places: Sequence[ColumnPlace]) -> str:
    first, second = (_manifest(cache, name, places).document for name in names[:2])
    return "; ".join(f"{field} {a!r} or {b!r}" for field, a, b in explain_difference(first, second)) or "equal specs"


def _manifest(cache: Cache, name: str, places: Sequence[ColumnPlace]) -> Manifest:
    place = next(place for place in places if place.name == name)
    return cache.columns[place][0].manifest(place)


def _parts(cache: Cache, name: str, places: Sequence[ColumnPlace]) -> tuple[Column, ...]:
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
