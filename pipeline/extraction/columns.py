"""What an extraction works on: the shard index of its images, and a column for every teacher."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.column_codec import column_layout
from pipeline.cache.column_writer import WritableColumn
from pipeline.cache.folder import Cache, ColumnPlace
from pipeline.cache.key import column_document, document_key
from pipeline.cache.manifest import Manifest
from pipeline.cache.spec import CacheSpec
from pipeline.extraction.config import Voice
from pipeline.extraction.teachers import IdentifiedTeacher, identify, is_known
from pipeline.images.build import Progress, build_index
from pipeline.images.errors import DamagedIndexError, StaleIndexError
from pipeline.images.index import ShardIndex
from pipeline.images.source import find_images
from pipeline.tables import human_bytes
from sak.errors import UsageError, nearest

_MARGIN_SECONDS = 0.5  # files that are made without a lease, such as manifests, are not leftovers so soon


@dataclass(frozen=True)
class Target:
    """One teacher's column: what it is, and the column itself, None where it is not begun (dry runs begin none)."""

    manifest: Manifest
    column: WritableColumn | None


def chosen_teachers(spec: CacheSpec, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The teachers asked for, in the spec's order; UsageError for one that it does not have."""
    for name in wanted or ():
        if name not in spec.teachers:
            raise UsageError(f"--teachers {name}: the spec has no such teacher{nearest(name, spec.teachers)}")
    return tuple(name for name in spec.teachers if wanted is None or name in wanted)


def find_index(cache: Cache, data: str, voice: Voice) -> ShardIndex:
    """The index of `data` that the cache keeps, if the shards did not change since; else a new one, kept there."""
    found = find_images(data).data
    for layer in cache.layers:
        for key in layer.data_keys():
            try:
                index = layer.index(key)
                if index.data == found:
                    index.check_shards()
                    cache.top.add_index(index)  # what lies there must be readable without the folders below
                    return index
            except (StaleIndexError, DamagedIndexError) as error:
                voice.say(f"{error}: reading the images again")
    voice.say(f"Reading all images of {found} once, to index them")

    def report(progress: Progress) -> None:
        expected = round(progress.samples * progress.bytes_total / max(1, progress.bytes))
        note = f"indexing, {human_bytes(progress.bytes)} of {human_bytes(progress.bytes_total)}"
        voice.progress(progress.samples, expected, note)

    index = build_index(data, progress=report)
    cache.top.add_index(index)
    return index


def identify_all(cache: Cache, spec: CacheSpec, names: Sequence[str], voice: Voice) -> dict[str, IdentifiedTeacher]:
    """What keys need to know of the teachers called `names`; SakError where one's weights cannot be had."""
    identities = {}
    for name in names:
        if not is_known(cache.top, spec, name):
            voice.say(f"Reading the weights of {name}")
        identities[name] = identify(cache.top, spec, name)
    return identities


def open_targets(
    cache: Cache,
    spec: CacheSpec,
    names: Sequence[str],
    index: ShardIndex,
    *,
    begin: bool,
    lease_seconds: float,
    identities: Mapping[str, IdentifiedTeacher] | None = None,
) -> dict[str, Target]:
    """Every teacher's column, begun where it is not there and `begin`; `identities` where they are known already."""
    targets = {}
    for name, identity in (identities or identify_all(cache, spec, names, Voice())).items():
        manifest = make_manifest(spec, name, identity, index)
        there = any(ColumnPlace.of(manifest) in set(layer.columns()) for layer in cache.layers)
        column = None
        if begin or there:
            column = WritableColumn.create_or_open(cache, manifest, lease_seconds=lease_seconds)
        targets[name] = Target(column.manifest if column else manifest, column)
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
    """Files by their absolute place, so that every worker finds them."""
    if weights == "pretrained" or weights.startswith("random"):
        return weights
    return str(Path(weights).expanduser().absolute())
