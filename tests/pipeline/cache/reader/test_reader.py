"""`FeatureCache`: what is read, what is refused, and from where."""

import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from pipeline.cache.manifest import CacheError
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.selection import SpecMismatchError
from pipeline.images.source import ReplayError
from pipeline.storage import open_location
from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.projection import ProjectedTarget, TargetMaps, project


def fill(maker):
    """Three teachers and 20 samples, of which n003 is bad."""
    maker.bad = {"n003": "truncated file"}
    for teacher in ("dino", "clip", "sam"):
        maker.write(teacher)
    return maker


@pytest.fixture
def filled(writer):
    return fill(writer())


@pytest.fixture
def either(writer, stored_as, made):
    """The same in either store."""
    return fill(writer(spec=made.spec(format=stored_as)))


def cosine(a, b):
    return float(F.cosine_similarity(a.flatten(1), b.flatten(1)).min())


def test_what_is_decoded_is_what_was_encoded(either, made):
    cache = FeatureCache.open(either.place)
    samples = np.asarray([19, 0, 7, 8, 7])
    batch = cache.read(samples)
    assert batch.keys == ["n019", "n000", "n007", "n008", "n007"]
    targets = batch.decode()
    clip = made.features("clip", batch.keys)
    assert isinstance(targets["clip"], FeatureMaps)
    assert all(torch.equal(a, b.half().float()) for a, b in zip(targets["clip"], clip, strict=True))
    for level, target in zip((2, 4), targets["dino"], strict=True):
        assert cosine(target, made.features("dino", batch.keys)[level]) > 0.9999


def test_projected_teachers_come_back_with_their_leftover(either, made):
    targets = FeatureCache.open(either.place, ["sam"]).read([4, 9]).decode()["sam"]
    assert isinstance(targets, TargetMaps)
    for level, target in zip((2, 4), targets, strict=True):
        expected = project(made.features("sam", ["n004", "n009"])[level], (2, 2))
        assert isinstance(target, ProjectedTarget)
        assert target.teacher_grid == (4, 4)
        assert torch.equal(target.leftover, expected.leftover)
        assert cosine(target.map, expected.map) > 0.9999


def test_bad_images_are_never_yielded(either):
    cache = FeatureCache.open(either.place)
    assert len(cache) == 19
    assert 3 not in cache.samples
    assert not cache.partial
    with pytest.raises(CacheError, match="sample 'n003', view 0, is in quarantine: truncated file"):
        cache.read([3])


def test_only_the_wanted_teachers_and_levels_are_read(either):
    cache = FeatureCache.open(either.place, ["clip", "dino"], levels=[4])
    dino, clip = 9 * (8 + 2), 4 * 16 * 2  # int8 and a float16 scale per token; float16
    assert cache.sample_bytes == dino + clip
    batch = cache.read([0, 1, 2])
    assert cache.bytes_read == 3 * (dino + clip) == batch.nbytes
    assert set(batch.arrays) == {"clip", "dino"}
    assert set(batch.arrays["clip"]) == {"l4/values"}
    assert batch.decode()["dino"].levels == (4,)


def test_the_bytes_that_leave_the_disk_are_those_of_the_wanted_levels(writer, made):
    """Counted by the kernel: what `read` and `pread` handed over."""
    maker = writer(spec=made.spec(), keys=tuple(f"k{n:04d}" for n in range(400)))
    maker.spec = made.spec(block=400)
    maker.write("clip")

    def read_by_kernel(levels):
        cache = FeatureCache.open(maker.place, levels=levels)
        cache.read(cache.samples[:1])
        before = int(Path("/proc/self/io").read_text().split()[1])
        cache.read(cache.samples)
        return int(Path("/proc/self/io").read_text().split()[1]) - before

    assert 0.9 < 2 * read_by_kernel([4]) / read_by_kernel(None) < 1.1


def test_levels_may_differ_by_teacher_and_unknown_ones_are_refused(filled):
    cache = FeatureCache.open(filled.place, ["clip", "dino"], levels={"clip": [2], "dino": [4]})
    assert [cache.teachers[name].levels for name in ("clip", "dino")] == [(2,), (4,)]
    with pytest.raises(UsageError, match="has levels 2, 4, not 3"):
        FeatureCache.open(filled.place, levels=[2, 3])
    with pytest.raises(UsageError, match="levels are given for sam"):
        FeatureCache.open(filled.place, ["clip"], levels={"sam": [2]})


def test_facts_of_the_teachers_are_known_without_them(filled):
    teachers = FeatureCache.open(filled.place).teachers
    assert [teachers[name].random for name in ("clip", "dino", "sam")] == [True, False, False]
    sam = teachers["sam"]
    assert (sam.width, sam.grid, sam.teacher_grid, sam.reduction, sam.encoding) == (
        8,
        (2, 2),
        (4, 4),
        "projection",
        "int8",
    )
    assert teachers["dino"].reduction == "native"


def test_reading_never_writes(either):
    root = Path(either.place)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        cache = FeatureCache.open(root)
        cache.read(cache.samples).decode()
        assert sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_a_spec_that_did_not_make_the_column_is_refused_with_the_differing_fields(filled, made):
    FeatureCache.open(filled.place, spec=filled.spec)
    other = made.spec(
        views={"kind": "random_resized_crop", "size": 32, "seed": 6},
        teachers={"dino": {"model": "timm/made_up.dino", "levels": [2, 4], "encoding": "int4"}},
    )
    with pytest.raises(SpecMismatchError) as refused:
        FeatureCache.open(filled.place, spec=other)
    assert refused.value.differences == (("encoding.kind", "int8", "int4"), ("views.seed", 5, 6))
    assert "encoding.kind: cache 'int8', spec 'int4'; views.seed: cache 5, spec 6" in str(refused.value)


def test_random_weights_are_not_taken_for_pretrained_ones(filled, made):
    pretrained = made.spec(
        teachers={"clip": {"model": "timm/made_up.clip", "levels": [2, 4], "encoding": "float16"}},
    )
    with pytest.raises(SpecMismatchError, match=r"teacher\.weights: cache 'random:7', spec 'pretrained'"):
        FeatureCache.open(filled.place, spec=pretrained)


def test_a_teacher_with_two_columns_must_be_told_apart(filled, writer, made):
    second = made.spec(teachers={"dino": {"model": "timm/made_up.dino", "levels": [2, 4], "encoding": "int4"}})
    other = writer(spec=second)
    other.write("dino")
    with pytest.raises(UsageError, match=r"teacher 'dino' has 2 columns.*encoding\.kind"):
        FeatureCache.open(filled.place, ["dino"])
    assert FeatureCache.open(filled.place, ["dino"], spec=second).teachers["dino"].encoding == "int4"
    name = f"dino-{FeatureCache.open(filled.place, ['dino'], spec=second).teachers['dino'].spec_key}"
    assert FeatureCache.open(filled.place, [name]).teachers["dino"].encoding == "int4"


def test_unknown_teachers_and_data_are_named(filled):
    with pytest.raises(UsageError, match="no features of teacher 'dinov'; did you mean 'dino'"):
        FeatureCache.open(filled.place, ["dinov"])
    with pytest.raises(UsageError, match="no column of data ffff"):
        FeatureCache.open(filled.place, data_key="ffff")
    with pytest.raises(UsageError, match="named twice"):
        FeatureCache.open(filled.place, ["dino", "dino"])


def test_an_empty_cache_says_so(writer):
    column = writer("empty").open("dino")
    with pytest.raises(CacheError, match="view 0 is incomplete: dino lacks 20 of 20 samples"):
        FeatureCache.open(column.column.folder.location.url)
    with pytest.raises(CacheError, match="incomplete"):
        FeatureCache.open(column.column.folder.location.url, allow_partial=True)


def test_an_incomplete_column_needs_leave_and_yields_what_is_there(writer, made):
    maker = writer()
    maker.write("clip")
    maker.write("dino", limit=10)
    with pytest.raises(CacheError, match=r"dino lacks 10 of 20 samples; .*--allow-partial"):
        FeatureCache.open(maker.place)
    cache = FeatureCache.open(maker.place, allow_partial=True)
    assert list(cache.samples) == list(range(10))
    assert cache.partial
    assert cache.describe()["partial"]
    assert cache.describe()["samples"] == [10]
    assert FeatureCache.open(maker.place, ["clip"]).describe()["partial"] is False
    with pytest.raises(CacheError, match="was not extracted yet"):
        cache.read([12])


def test_epoch_after_epoch_reads_view_after_view(writer, made):
    maker = writer()
    maker.write("dino", views=2)
    cache = FeatureCache.open(maker.place)
    assert cache.views == 2
    maps = [cache.read([5], view).decode()["dino"][2] for view in (0, 1)]
    assert cosine(maps[1], made.features("dino", ["n005"], 1)[2]) > 0.9999
    assert cosine(maps[0], made.features("dino", ["n005"], 1)[2]) < 0.9999
    with pytest.raises(IndexError, match="view 2 of 2"):
        cache.read([5], 2)


def test_only_complete_views_are_read_unless_partial_ones_are_allowed(writer):
    maker = writer()
    column = maker.write("dino")
    maker.write_block(column, 1, 0)
    assert FeatureCache.open(maker.place).views == 1
    assert FeatureCache.open(maker.place, allow_partial=True).views == 2
    with pytest.raises(CacheError, match="view 1 is incomplete: dino lacks 12 of 20"):
        FeatureCache.open(maker.place, views=2)
    assert FeatureCache.open(maker.place, views=1, allow_partial=True).views == 1


def test_stored_boxes_and_crcs_come_with_the_features(filled, made):
    batch = FeatureCache.open(filled.place).read([12, 2])
    for row, key in enumerate(("n012", "n002")):
        view, crc = made.mark(filled.spec.views, key, 0)
        assert batch.views.view(row) == view
        assert int(batch.views.crcs[row]) == crc


def test_teachers_that_saw_different_pixels_are_refused(filled):
    column = filled.open("clip").column
    path = "views/v000-b000001.bin"
    record = column.record(0, 1)
    data = bytearray(column.location.read_bytes(path))
    data[-1] ^= 1
    column.location.write_bytes(path, bytes(data))
    from pipeline.cache.records import file_record

    changed = type(record)(**{**vars(record), "views": file_record(path, bytes(data))})
    column.location.write_bytes("records/v000-b000001.json", changed.to_bytes())
    cache = FeatureCache.open(filled.place, ["dino", "clip"])
    cache.read([0, 7])
    with pytest.raises(ReplayError, match="sample 'n015', view 0: teachers dino and clip saw different pixels"):
        cache.read([14, 15])


def test_columns_of_other_views_are_not_read_together(writer, made):
    writer().write("dino")
    writer(spec=made.spec(views={"kind": "resize", "size": 32})).write("clip")
    with pytest.raises(CacheError, match=r"saw different views: views\.hflip"):
        FeatureCache.open(writer().place)


def larger(writer, made):
    """The keys of the small data set and more, in another order; the old samples are left to the old column."""
    keys = tuple(f"n{number:03d}" for number in reversed(range(30)))
    return writer(keys=keys)


def test_a_larger_data_set_adds_a_column_and_readers_take_the_union(writer, made):
    small, large = writer(), larger(writer, made)
    small.write("dino")
    small.write("clip")
    large.write("clip")
    large.write("dino", elsewhere=set(small.keys))
    cache = FeatureCache.open(small.place)
    assert len(cache) == 30
    assert not cache.partial
    keys = ["n029", "n000", "n015", "n022"]
    batch = cache.read(cache.sample_table.locate(keys))
    assert batch.keys == keys
    assert len(set(batch.parts["dino"].tolist())) == 2
    targets = batch.decode()
    for level in (2, 4):
        assert cosine(targets["dino"][level], made.features("dino", keys)[level]) > 0.999
        assert torch.equal(targets["clip"][level], made.features("clip", keys)[level].half().float())
    assert cache.sample_table.image(0)[0].key(cache.sample_table.image(0)[1]) == cache.sample_table.key(0)


def test_images_may_have_moved_unless_they_are_of_several_data_sets(writer, made, monkeypatch):
    from pipeline.images.index import ShardIndex

    moved = []
    monkeypatch.setattr(ShardIndex, "relocated", lambda self, data: moved.append(data) or self)
    small, large = writer(), larger(writer, made)
    small.write("dino")
    sample_table = FeatureCache.open(small.place).sample_table
    assert sample_table.relocated("/elsewhere").samples == 20
    assert moved == ["/elsewhere"]
    large.write("dino", elsewhere=set(small.keys))
    with pytest.raises(UsageError, match="of 2 data sets"):
        FeatureCache.open(small.place).sample_table.relocated("/elsewhere")


def test_one_data_set_of_several_can_be_read_alone(writer, made):
    small, large = writer(), larger(writer, made)
    small.write("dino")
    large.write("dino", elsewhere=set(small.keys))
    alone = FeatureCache.open(small.place, data_key=small.index.data_key())
    assert len(alone) == 20
    assert alone.sample_table.key(0) == "n000"
    with pytest.raises(CacheError, match="dino lacks 20 of 30"):
        FeatureCache.open(small.place, data_key=large.index.data_key()[:10])


def test_another_image_under_the_same_key_is_refused(writer, monkeypatch):
    from pipeline.images.index import ShardIndex

    small, large = writer(), writer(keys=("n000", "n001", "x"))
    small.write("dino")
    large.write("dino")
    FeatureCache.open(small.place)
    monkeypatch.setattr(ShardIndex, "digest", lambda self, sample: len(self).to_bytes(32, "little"))
    with pytest.raises(CacheError, match="sample 'n000' has different images"):
        FeatureCache.open(small.place)


def test_an_overlay_reads_both_folders_as_one(writer, made):
    below = writer("ro")
    below.write("dino", limit=8)
    below.write("clip")
    overlay = writer(place=f"{writer('rw').place}:{below.place}")
    overlay.write("dino")
    cache = FeatureCache.open(overlay.place)
    assert len(cache) == 20
    batch = cache.read(cache.samples)
    assert set(batch.parts["dino"].tolist()) == {0, 1}
    assert cosine(batch.decode()["dino"][4], made.features("dino", batch.keys)[4]) > 0.9999


def test_overlaid_columns_of_other_calibrations_are_refused(writer, made, monkeypatch):
    writer("ro").write("dino", limit=8)
    other = writer("rw")
    monkeypatch.setattr("pipeline.cache.calibration.Calibration.to_bytes", _with_one_more(made))
    other.write("dino")
    monkeypatch.undo()
    with pytest.raises(CacheError, match="come from different calibrations"):
        FeatureCache.open(f"{other.place}:{writer('ro').place}")


def _with_one_more(made):
    from dataclasses import replace

    from pipeline.cache.calibration import Calibration

    original = Calibration.to_bytes

    def to_bytes(self):
        return original(replace(self, samples=self.samples + 1))

    return to_bytes


def test_a_cache_behind_a_url_reads_the_same(either, tmp_path):
    url = f"memory://reader-{tmp_path.name}"
    there, here = open_location(url), open_location(str(either.place))
    for entry in here.walk():
        there.write_bytes(entry.path, here.read_bytes(entry.path))
    cache = FeatureCache.open(url)
    expected = FeatureCache.open(either.place).read([1, 18]).arrays
    found = cache.read([1, 18]).arrays
    assert all((found[t][name] == expected[t][name]).all() for t in expected for name in expected[t])


def test_a_reader_survives_pickling_and_forking(either):
    cache = FeatureCache.open(either.place)
    expected = cache.read([1, 18]).arrays["dino"]["l2/values"]
    again = pickle.loads(pickle.dumps(cache))
    assert (again.read([1, 18]).arrays["dino"]["l2/values"] == expected).all()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        same = (cache.read([1, 18]).arrays["dino"]["l2/values"] == expected).all()
        os.write(writing, b"1" if same else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"


@pytest.mark.parametrize("workers", ["none", "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_dataloader_workers_read_the_right_samples(filled, made, workers):
    cache = FeatureCache.open(filled.place)
    cache.read([0])
    count = {"none": 0, "fork": 2, "spawn": 1}[workers]
    several = {"num_workers": count, "multiprocessing_context": workers} if count else {}
    seen = []
    for batch in DataLoader(cache, batch_size=3, shuffle=True, **several):
        targets = cache.decode(batch["features"], batch["parts"])
        seen += batch["key"]
        clip = made.features("clip", batch["key"])
        assert torch.equal(targets["clip"][4], clip[4].half().float())
        assert cosine(targets["dino"][2], made.features("dino", batch["key"])[2]) > 0.9999
        assert [made.mark(filled.spec.views, key, 0)[1] for key in batch["key"]] == batch["crc"].tolist()
    assert sorted(seen) == [f"n{number:03d}" for number in range(20) if number != 3]


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "int8", "int4", {"kind": "int8", "pca": 3}])
def test_every_encoding_goes_through_default_collation(writer, made, encoding):
    teachers = {"dino": {"model": "timm/made_up.dino", "levels": [2, 4], "encoding": encoding}}
    maker = writer(spec=made.spec(teachers=teachers))
    maker.write("dino")
    cache = FeatureCache.open(maker.place)
    batch = next(iter(DataLoader(cache, batch_size=4)))
    collated = cache.decode(batch["features"], batch["parts"])["dino"][4]
    assert torch.equal(collated, cache.read([0, 1, 2, 3]).decode()["dino"][4])
