"""A small cache of made-up features, written through the real code."""

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache.calibration import Calibrator
from pipeline.cache.column_codec import ColumnCodec, LevelFidelity, column_layout, reduction_of
from pipeline.cache.folder import Cache
from pipeline.cache.key import column_document, document_key
from pipeline.cache.manifest import Manifest
from pipeline.cache.records import Absent
from pipeline.cache.spec import CacheSpec, parse_spec
from pipeline.cache.writer import WritableColumn
from pipeline.images.index import ShardIndex
from pipeline.images.index_file import Columns, IndexHeader, hash_keys, join_keys
from pipeline.images.views import make_view
from sak.features import FeatureMaps
from sak.teachers.recipe import TeacherFacts

FACTS = {"dino": TeacherFacts(8, 4, (3, 3)), "clip": TeacherFacts(16, 4, (2, 2)), "sam": TeacherFacts(8, 4, (4, 4))}


def make_index(keys, data="/data/made-up"):
    """An index of images that lie nowhere; an image's digest follows from its key."""
    hashes, order = hash_keys(keys)
    key_bytes, key_ends = join_keys(keys)
    count = len(keys)
    digest = np.stack([np.frombuffer(sha256(f"image {key}".encode()).digest(), np.uint8) for key in keys])
    columns = Columns(
        key_bytes=key_bytes,
        key_ends=key_ends,
        shard=np.zeros(count, np.int32),
        suffix=np.zeros(count, np.uint16),
        offset=np.arange(count, dtype=np.int64) * 1000,
        size=np.full(count, 1000, np.int64),
        label=np.arange(count, dtype=np.int32) % 3,
        digest=digest,
        hashes=hashes,
        order=order,
    )
    return ShardIndex(columns, IndexHeader(data, "tars", data, ("shard.tar",), (), (".jpg",)))


def make_spec(**changes) -> CacheSpec:
    """Three teachers of levels 2 and 4 with 32 x 32 views; sam is projected onto the student's 2 x 2 grid."""
    document = {
        "views": {"kind": "random_resized_crop", "size": 32, "seed": 5},
        "block": 8,
        "teachers": {
            "dino": {"model": "timm/made_up.dino", "weights": "pretrained", "levels": [2, 4]},
            "clip": {"model": "timm/made_up.clip", "weights": "random:7", "levels": [2, 4], "encoding": "float16"},
            "sam": {"model": "timm/samvit_made_up.sa1b", "levels": [2, 4], "grid": "projection", "encoding": "int8"},
        },
    }
    return parse_spec({**document, **changes}, facts=FACTS)


def make_manifest(teacher, spec, index, weights_sha256="0" * 64) -> Manifest:
    """What extraction would write for one teacher."""
    facts = FACTS[teacher]
    document = column_document(
        spec.teachers[teacher], spec, weights_sha256=weights_sha256, teacher_revision="1", custom_source_sha256=None
    )
    layout = column_layout(
        document,
        width=facts.width,
        grid=facts.grid,
        samples=len(index),
        block=spec.samples_per_block,
        codec=spec.codec,
    )
    return Manifest(
        teacher=teacher,
        spec_key=document_key(document),
        data_key=index.data_key(),
        document=document,
        width=facts.width,
        grid=facts.grid,
        weights=spec.teachers[teacher].weights,
        layout=layout,
        format=spec.format,
    )


def features(teacher, keys, view=0) -> FeatureMaps:
    """Made-up maps that differ by teacher, key, view and level; channel 0 is huge."""
    facts = FACTS[teacher]

    def one(key, level):
        seed = int.from_bytes(sha256(f"{teacher} {key} {view} {level}".encode()).digest()[:4], "little")
        map_ = torch.randn(facts.width, *facts.grid, generator=torch.Generator().manual_seed(seed))
        map_[0] = map_[0] * 20 + 100
        return map_

    return FeatureMaps((2, 4), tuple(torch.stack([one(key, level) for key in keys]) for level in (2, 4)))


def view_and_crc(policy, key, number):
    view = make_view(policy, key, number, (64, 48))
    return view, int.from_bytes(sha256(f"{key} {number}".encode()).digest()[:4], "little")


@dataclass
class Writer:
    """Writes columns as extraction would, block by block."""

    place: str | Path
    spec: CacheSpec = field(default_factory=make_spec)
    keys: tuple[str, ...] = tuple(f"n{number:03d}" for number in range(20))
    bad: dict[str, str] = field(default_factory=dict)
    owner: object = None

    @property
    def index(self) -> ShardIndex:
        return make_index(list(self.keys))

    def open(self, teacher, **options) -> WritableColumn:
        cache = Cache.create(self.place)
        cache.top.add_index(self.index)
        column = WritableColumn.create_or_open(cache, make_manifest(teacher, self.spec, self.index), **options)
        calibrator = Calibrator((2, 4), self.spec.teachers[teacher].encoding.pca)
        reduction = reduction_of(column.manifest.document, column.manifest.grid)
        maps = features(teacher, self.keys)
        calibrator.update(FeatureMaps((2, 4), tuple(reduction(map_).map for map_ in maps)))
        column.publish_calibration(calibrator.finish())
        return column

    def write(self, teacher, views=1, limit=None, elsewhere=()) -> WritableColumn:
        column = self.open(teacher)
        for view, block in column.pending(views, limit=limit):
            self.write_block(column, view, block, limit=limit, elsewhere=elsewhere)
        return column

    def write_block(self, column, view, block, limit=None, elsewhere=()):
        lease = column.lease(view, block, limit=limit)
        if lease is None:
            return None
        with lease, column.write(lease, view, block) as job:
            return self.fill(column, job, view, block, limit, elsewhere)

    def fill(self, column, job, view, block, limit=None, elsewhere=()):
        codec = ColumnCodec(column.manifest, column.calibration())
        teacher = column.manifest.teacher
        samples = [s for s in column.manifest.layout.block_samples(block) if limit is None or s < limit]
        skipped = [s for s in samples if self.keys[s] in elsewhere]
        good = [s for s in samples if self.keys[s] not in self.bad and s not in skipped]
        sums = {level: LevelFidelity() for level in (2, 4)}
        for start in range(0, len(good), 3):
            some = good[start : start + 3]
            keys = [self.keys[sample] for sample in some]
            encoded = codec.encode(features(teacher, keys, view), keys)
            sums = {level: sums[level] + encoded.fidelity[level] for level in sums}
            marks = [view_and_crc(self.spec.views, key, view) for key in keys]
            arrays = {name: tensor.numpy() for name, tensor in encoded.arrays.items()}
            job.append(some, arrays, [mark[0] for mark in marks], [mark[1] for mark in marks])
        absent = [Absent(s, self.keys[s], self.bad[self.keys[s]]) for s in samples if self.keys[s] in self.bad]
        return job.finish(fidelity=sums, facts={"device": "cpu", "seconds": 0.1}, absent=absent, elsewhere=skipped)


@pytest.fixture(params=["zarr", "webdataset"])
def stored_as(request):
    """Both stores, for what must hold in either."""
    return request.param


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """Makes a `Writer` of a cache under the test's folder: `writer(name, **fields)`. Nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def make(name="cache", **fields):
        return Writer(fields.pop("place", tmp_path / name), **fields)

    return make


@pytest.fixture
def made():
    """What made-up caches are made of, for comparison: `made.features`, `made.spec`, ..."""
    from types import SimpleNamespace

    return SimpleNamespace(
        features=features, spec=make_spec, index=make_index, manifest=make_manifest, mark=view_and_crc, facts=FACTS
    )
