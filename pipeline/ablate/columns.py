"""What the caches of a study hold already: column by column, and what is missing of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, split_overlay
from pipeline.cache.selection import spec_differences
from pipeline.cache.spec import CacheSpec
from pipeline.cache.tools.plan import plan as plan_cache
from pipeline.images.source import ImageSource, find_images
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

    `name` is its folder's, None where it is not begun. `wanted` and `there` count samples over all views, `wanted` is
    None where the number of images is not known. `bytes_per_image` is of one view; `views` is how many are wanted, or
    there.
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
    columns = _open_columns(need)
    if need.spec is None:
        names = None if need.teachers is None else set(need.teachers)
        return [_as_it_is(column) for column in columns if names is None or names & {column.id.teacher, column.id.name}]
    sizes = {column.teacher: column.total for column in plan_cache(need.spec, 1).columns}
    return [_state(need, need.spec, teacher, columns, sizes[teacher]) for teacher in need.spec.teachers]


def _open_columns(need: CacheNeed) -> list[Column]:
    """None yet where the cache is to be made; a cache that is only read must be there."""
    try:
        columns = Cache.open(need.cache).columns
    except SakError:
        if need.spec is None:
            raise
        return []
    return [Column.open(layer, path) for path, layers in columns.items() for layer in layers]


def _state(need: CacheNeed, spec: CacheSpec, teacher: str, columns: Sequence[Column], size: float) -> ColumnState:
    same = [
        column
        for column in columns
        if column.id.teacher == teacher
        and not spec_differences(column.manifest, teacher, spec)
        and _is_of_data(column, need.data)
    ]
    for column in same:
        _refuse_more(need, column)
    weights, encoding = spec.teachers[teacher].weights, spec.teachers[teacher].encoding
    samples = same[0].manifest.layout.samples if same else need.samples
    return ColumnState(
        cache=need.cache,
        teacher=teacher,
        encoding=encoding.kind if encoding.pca is None else f"{encoding.kind} PCA {encoding.pca}",
        random=weights.startswith("random"),
        name=same[0].id.name if same else None,
        wanted=None if samples is None else need.views * min(samples, need.limit or samples),
        there=sum(_attempted(column, need) for column in same),
        bytes_per_image=size,
        views=need.views,
    )


def _is_of_data(column: Column, data: str | None) -> bool:
    """Whether a column is of the data that is meant; of any, where none is named.

    Images that were moved are known by the names and sizes of their shards, as for a training with `--data`. Where the
    old ones are still there, both may differ in what no size tells: an extraction has to look at them.
    """
    if data is None:
        return True
    try:
        index, images = column.index, _find_images(data)
    except (SakError, OSError):  # a damaged index: what was extracted still is what it is
        return True
    if images is None or index.data == images.data:
        return True
    sizes = [stamp.bytes for stamp in index.stamps]
    is_same = index.shards == images.shards and sizes == [stamp.bytes for stamp in images.stamps]
    return is_same and _find_images(index.data) is None


@lru_cache(maxsize=64)
def _find_images(data: str) -> ImageSource | None:
    """The images, None where none are; a million files are listed once in a process, not for each row and column."""
    try:
        return replace(find_images(data), files=())  # which may be a million
    except (SakError, OSError):
        return None


def _refuse_more(need: CacheNeed, column: Column) -> None:
    """UsageError where a column has samples beyond the limit: a training would read them too."""
    if need.limit is not None and any(column.present(view)[need.limit :].any() for view in range(column.views)):
        raise UsageError(
            f"{need.cache}: {column.id.name} has more than the first {need.limit} images, and a training reads all "
            "that is there; give extract.limit a cache of its own"
        )


def _attempted(column: Column, need: CacheNeed) -> int:
    """Samples with features and bad ones, of the views and the first samples that are wanted."""
    done = (column.present(view) | column.absent(view) for view in range(need.views))
    return sum(int(samples[: need.limit].sum()) for samples in done)


def _as_it_is(column: Column) -> ColumnState:
    there = sum(int(column.present(view).sum()) for view in range(column.views))
    nbytes = sum(record.nbytes for record in column.records.values())
    return ColumnState(
        cache=str(column.folder.location),
        teacher=column.id.teacher,
        encoding=column.manifest.document["encoding"]["kind"],
        random=column.random,
        name=column.id.name,
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
