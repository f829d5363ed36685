"""What `FeatureCache.open` decides: which levels, whether the columns go together, how many views are there."""

from collections.abc import Mapping, Sequence

from pipeline.cache.column import Column
from pipeline.cache.key import explain_difference
from pipeline.cache.sealed import CacheError
from pipeline.cache.teacher_reader import TeacherReader
from sak.errors import UsageError

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
        columns[0].place.name: {name: columns[0].manifest.document[name] for name in ("views", "pixels")}
        for columns in selected.values()
    }
    (first, expected), *others = recipes.items()
    for name, recipe in others:
        differing = explain_difference(expected, recipe)
        if differing:
            told = "; ".join(f"{field}: {a!r} and {b!r}" for field, a, b in differing)
            raise CacheError(f"{first} and {name} saw different views: {told}; extract one of them again")


def count_views(cache: str, readers: Mapping[str, TeacherReader], views: int | None, *, allow_partial: bool) -> int:
    """How many views are read: those asked for, or all that are complete; with `allow_partial` all that were begun."""
    begun = min(reader.views for reader in readers.values())
    incomplete = (view for view in range(begun) if not allow_partial and _missing(readers, view))
    complete = next(incomplete, begun)
    if complete >= max(1, views or 1):
        return views or complete
    missing = _missing(readers, complete) or [
        f"{name} all of it" for name, each in readers.items() if each.views <= complete
    ]
    remedy = "extract the rest" if allow_partial else "extract the rest, or read what there is with --allow-partial"
    raise CacheError(f"{cache}: view {complete} is incomplete: {', '.join(missing)}; {remedy}")


def _missing(readers: Mapping[str, TeacherReader], view: int) -> list[str]:
    counts = {teacher: int(reader.missing(view).sum()) for teacher, reader in readers.items()}
    return [
        f"{teacher} lacks {count} of {readers[teacher].universe.samples} samples"
        for teacher, count in counts.items()
        if count
    ]
