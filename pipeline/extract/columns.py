"""What an extraction works on: its config, the shard index of its images, and a column for every teacher.

Nothing in `ExtractConfig` decides bytes of a column: that is the spec's.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.column import Column
from pipeline.cache.column_codec import column_layout
from pipeline.cache.folder import Cache, ColumnId
from pipeline.cache.key import column_document, document_key
from pipeline.cache.lease import SECONDS
from pipeline.cache.manifest import Manifest
from pipeline.cache.spec import CacheSpec
from pipeline.cache.writer import WritableColumn
from pipeline.cluster import ClusterConfig
from pipeline.extract.worker import IdentifiedTeacher
from pipeline.images.build import IndexProgress, build_index
from pipeline.images.index import ShardIndex
from pipeline.images.source import DamagedIndexError, StaleIndexError, find_images
from pipeline.progress import Messages
from pipeline.settings import Overrides
from pipeline.tables import human_bytes
from sak.errors import UsageError, nearest

Samples = NDArray[np.int64]
MAX_BAD = 0.001
_MARGIN_SECONDS = 0.5  # files that are made without a lease, such as manifests, are not leftovers so soon


@dataclass(frozen=True)
class ExtractConfig:
    """One extraction.

    `spec`: the cache spec's YAML, with `overrides` as `--set` takes them. `data`: see `find_images`. `cache`: a folder
    or URL, or `rw:ro`. `teachers`: some of the spec's, None for all. `views`: how many views there shall be. `limit`:
    only the first samples. `max_bad`: the share of samples that may be unusable before the run stops. `dry_run` stops
    after saying what would be done. `ignore_space` starts although the disk seems too small.
    """

    spec: str | Path
    data: str
    cache: str
    teachers: Sequence[str] | None = None
    views: int = 1
    batch_size: int = 32
    limit: int | None = None
    max_bad: float = MAX_BAD
    dry_run: bool = False
    ignore_space: bool = False
    overrides: Overrides = ()
    lease_seconds: float = SECONDS
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("views", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad is a share of the samples between 0 and 1, got {self.max_bad}")


@dataclass(frozen=True)
class ExtractionTarget:
    """One teacher's column: what it is, and the column itself, None where it is not begun (dry runs begin none)."""

    manifest: Manifest
    column: WritableColumn | None


def chosen_teachers(spec: CacheSpec, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The teachers asked for, in the spec's order; UsageError for one that it does not have."""
    for name in wanted or ():
        if name not in spec.teachers:
            raise UsageError(f"--teachers {name}: the spec has no such teacher{nearest(name, spec.teachers)}")
    return tuple(name for name in spec.teachers if wanted is None or name in wanted)


def find_index(cache: Cache, data: str, messages: Messages) -> ShardIndex:
    """The index of `data` that the cache keeps, if the shards did not change since; else a new one, kept there."""
    location = find_images(data).data
    for layer in cache.layers:
        for key in layer.data_keys():
            try:
                index = layer.index(key)
                if index.data == location:
                    index.check_shards()
                    cache.top.add_index(index)  # what lies in it must be readable without the folders below
                    return index
            except (StaleIndexError, DamagedIndexError) as error:
                messages.say(f"{error}: reading the images again")
    messages.say(f"Reading all images of {location} once, to index them")

    def report(progress: IndexProgress) -> None:
        expected = round(progress.samples * progress.bytes_total / max(1, progress.bytes))
        note = f"indexing, {human_bytes(progress.bytes)} of {human_bytes(progress.bytes_total)}"
        messages.progress(progress.samples, expected, note)

    index = build_index(data, progress=report)
    cache.top.add_index(index)
    return index


def open_targets(
    cache: Cache,
    spec: CacheSpec,
    identities: Mapping[str, IdentifiedTeacher],
    index: ShardIndex,
    *,
    begin: bool,
    lease_seconds: float,
) -> dict[str, ExtractionTarget]:
    """Every teacher's column, begun where it is not there and `begin`."""
    targets = {}
    for name, identity in identities.items():
        manifest, column = make_manifest(spec, name, identity, index), None
        if begin or ColumnId.of(manifest) in cache.columns:
            column = WritableColumn.create_or_open(cache, manifest, lease_seconds=lease_seconds)
        targets[name] = ExtractionTarget(column.manifest if column else manifest, column)
    return targets


def remove_leftovers(columns: Iterable[WritableColumn]) -> None:
    """Remove the scratch files of writers that died: those older than now, in columns that nobody writes."""
    now = time.time()
    for column in columns:
        if not column.leases.held():
            column.column.location.remove_scratch(time.time() - now + _MARGIN_SECONDS)


def make_manifest(spec: CacheSpec, name: str, identity: IdentifiedTeacher, index: ShardIndex) -> Manifest:
    """What the column of a spec's teacher over `index` is."""
    teacher = spec.teachers[name]
    document = column_document(
        teacher,
        spec,
        weights_sha256=str(identity.recipe.weights_sha256),
        teacher_revision=str(identity.recipe.code_revision),
        custom_source_sha256=identity.recipe.source_sha256,
    )
    layout = column_layout(
        document,
        width=identity.width,
        grid=identity.grid,
        samples=len(index),
        block=spec.samples_per_block,
        codec=spec.codec,
    )
    return Manifest(
        teacher=name,
        spec_key=document_key(document),
        data_key=index.data_key(),
        document=document,
        width=identity.width,
        grid=identity.grid,
        weights=_weights(teacher.weights),
        layout=layout,
        format=spec.format,
    )


def _weights(weights: str) -> str:
    """Files by their absolute path, so that every worker finds them; links stay links, as machines differ in those."""
    is_file = weights != "pretrained" and not weights.startswith("random")
    return str(Path(weights).expanduser().absolute()) if is_file else weights


def samples_elsewhere(cache: Cache, manifest: Manifest, index: ShardIndex, views: int) -> dict[int, Samples]:
    """By view, the samples of `index`, ascending, whose very image the columns of other data sets have features of.

    So a larger data set extracts only what is new; readers take the union of the columns. Key and SHA-256 of the image
    must agree.
    """
    held = {view: np.zeros(len(index), bool) for view in range(views)}
    for column in _siblings(cache, manifest):
        other = cache.index(column.id.data)
        rows = other.locate(index.keys())
        shared = np.flatnonzero(rows >= 0)
        shared = shared[(index.columns.digest[shared] == other.columns.digest[rows[shared]]).all(1)]
        for view, mask in held.items():
            mask[shared] |= column.present(view)[rows[shared]]
    return {view: np.flatnonzero(mask) for view, mask in held.items()}


def _siblings(cache: Cache, manifest: Manifest) -> Iterator[Column]:
    """The columns of the same teacher and spec key over other data."""
    own = ColumnId.of(manifest)
    for path, folders in cache.columns.items():
        if path.name == own.name and path.data != own.data:
            yield from (Column.open(folder, path) for folder in folders)
