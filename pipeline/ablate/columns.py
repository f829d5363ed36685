"""What the caches of a study hold already: column by column, and what is missing of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, split_overlay
from pipeline.cache.selection import spec_differences
from pipeline.cache.spec import CacheSpec
from pipeline.cache.tools.plan import plan as plan_cache
from pipeline.images.source import find_images
from pipeline.storage import open_location
from pipeline.storage.location import StorageError
from sak.errors import SakError, UsageError


@dataclass(frozen=True)
class CacheNeed:
    """One cache as some runs want it: `spec` with the wanted teachers alone, None to read the cache as it is.

    `teachers` are those that are read of a cache as it is, by name or by column, None for all that it has. `samples`
    is what the study says of the number of images, for where the data cannot be asked.
    """

    cache: str
    spec: CacheSpec | None
    data: str | None
    views: int = 1
    limit: int | None = None
    batch_size: int = 32
    max_bad: float | None = None
    samples: int | None = None
    teachers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ColumnState:
    """One teacher's column in one cache, against what is wanted of it.

    `name` is its folder's, None where it is not begun. `wanted` and `there` count samples over all views, None where
    the number of images is not known. `bytes_per_image` is of one view; `views` is how many are
    wanted, or there.
    """

    cache: str
    teacher: str
    encoding: str
    random: bool
    name: str | None
    wanted: int | None
    there: int
    bytes_per_image: float
    views: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.name is not None and self.wanted is not None and self.there >= self.wanted

    @property
    def missing(self) -> int | None:
        """Samples still to be extracted."""
        return None if self.wanted is None else max(0, self.wanted - self.there)

    @property
    def missing_bytes(self) -> float | None:
        """What they will take."""
        return None if self.missing is None else self.missing * self.bytes_per_image


def column_states(need: CacheNeed) -> list[ColumnState]:
    """The columns that a need is about, in the spec's order; of a cache as it is, those that are read."""
    cache = _opened(need)
    if need.spec is None:
        return [] if cache is None else [_as_it_is(each) for each in _columns(cache) if _is_read(need, each)]
    columns = [] if cache is None else _columns(cache)
    sizes = {column.teacher: column.total for column in plan_cache(need.spec, 1).columns}
    return [_state(need, teacher, columns, sizes[teacher]) for teacher in need.spec.teachers]


def _opened(need: CacheNeed) -> Cache | None:
    """The cache; None where it is to be made. A cache that is only read must be there."""
    try:
        return Cache.open(need.cache)
    except SakError:
        if need.spec is None:
            raise
        return None


def _columns(cache: Cache) -> list[Column]:
    return [Column.open(layer, place) for place, layers in cache.columns.items() for layer in layers]


def _is_read(need: CacheNeed, column: Column) -> bool:
    return need.teachers is None or not {column.place.teacher, column.place.name}.isdisjoint(need.teachers)


def _state(need: CacheNeed, teacher: str, columns: Sequence[Column], size: float) -> ColumnState:
    spec = need.spec
    if spec is None:
        raise ValueError("a state is taken against a spec")
    mine = [
        column
        for column in columns
        if column.place.teacher == teacher
        and not spec_differences(column.manifest, teacher, spec)
        and _of(need, column)
    ]
    for column in mine:
        _refuse_more(need, column)
    asked, encoding = spec.teachers[teacher], spec.teachers[teacher].encoding
    return ColumnState(
        cache=need.cache,
        teacher=teacher,
        encoding=encoding.kind if encoding.pca is None else f"{encoding.kind} PCA {encoding.pca}",
        random=asked.weights.startswith("random"),
        name=mine[0].place.name if mine else None,
        wanted=_wanted(need, mine),
        there=sum(_attempted(column, need) for column in mine),
        bytes_per_image=size,
        views=need.views,
    )


def _of(need: CacheNeed, column: Column) -> bool:
    """Whether a column is of the data that is meant; of any, where none is named."""
    if need.data is None:
        return True
    try:
        return column.index.data == _data_key(need.data)
    except (SakError, OSError):  # the images are elsewhere now; what was extracted from them still is what it is
        return True


@lru_cache(maxsize=64)
def _data_key(data: str) -> str:
    """Which images these are; a million files are listed once in a process, not for each row and column."""
    return find_images(data).data


def _wanted(need: CacheNeed, columns: Sequence[Column]) -> int | None:
    samples = columns[0].manifest.layout.samples if columns else need.samples
    if samples is None:
        return None
    return need.views * (samples if need.limit is None else min(need.limit, samples))


def _refuse_more(need: CacheNeed, column: Column) -> None:
    """UsageError where a column has samples beyond the limit: a training would read them too."""
    if need.limit is not None and any(column.present(view)[need.limit :].any() for view in range(column.views)):
        raise UsageError(
            f"{need.cache}: {column.place.name} has more than the first {need.limit} images, and a training reads all "
            "that is there; give extract.limit a cache of its own"
        )


def _attempted(column: Column, need: CacheNeed) -> int:
    """Samples with features and bad ones, of the views and the first samples that are wanted."""
    done = (column.present(view) | column.absent(view) for view in range(need.views))
    return sum(int(each[: need.limit].sum()) for each in done)


def _as_it_is(column: Column) -> ColumnState:
    manifest = column.manifest
    there = sum(int(column.present(view).sum()) for view in range(column.views))
    nbytes = sum(record.nbytes for record in column.records.values())
    return ColumnState(
        cache=str(column.folder.location),
        teacher=manifest.teacher,
        encoding=manifest.document["encoding"]["kind"],
        random=manifest.random,
        name=column.place.name,
        wanted=there,
        there=there,
        bytes_per_image=nbytes / there if there else 0.0,
        views=column.views,
    )


def free_space(cache: str) -> int | None:
    """Bytes free where a cache lies or will lie; None where that cannot be told."""
    try:
        return open_location(split_overlay(cache)[0]).free_space()
    except (StorageError, OSError):
        return None
