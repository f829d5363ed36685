"""The stage from spec and shards to a cache, with everything in this process."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache.folder import Cache
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.spec import load_spec
from pipeline.cache.tools.inventory import ls
from pipeline.cache.tools.verify import verify
from pipeline.extract.check_live import check_live
from pipeline.extract.columns import ExtractConfig
from pipeline.extract.stage import extract
from pipeline.extract.worker import build_from_spec
from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.views import make_view, render
from pipeline.storage import StorageError
from sak.errors import SakError, UsageError


def test_all_real_photos_are_cached_greyscale_too_and_a_second_run_has_nothing_to_do(run, test_data, tmp_path):
    data = str(test_data / "imagenet-sample")
    report = run(data)
    assert report.status == "complete"
    assert report.images == 250
    assert not report.bad
    cache = tmp_path / "cache"
    assert verify(str(cache), deep=True).sound
    features = FeatureCache.open(str(cache))
    assert len(features.samples) == 250
    index = Cache.open(str(cache)).top.index(Cache.open(str(cache)).top.data_keys()[0])
    modes = {_mode(ImageAccess(index).read(sample)) for sample in range(250)}
    assert "L" in modes
    start = time.monotonic()
    again = run(data)
    assert again.status == "nothing to do"
    assert time.monotonic() - start < 10
    assert not any("dashboard" in line for line in run.said)


def _mode(data):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).mode


def test_cached_features_are_the_teachers_features_of_the_same_pixels(run, shards, tmp_path, write_spec):
    path = write_spec(tmp_path / "spec.yaml")
    run(shards, spec=path)
    spec = load_spec(path)
    features = FeatureCache.open(str(tmp_path / "cache"))
    batch = features.read(np.arange(8), 0)
    index = features.cache.index(features.cache.top.data_keys()[0])
    images = [decode_rgb(ImageAccess(index).read(sample)) for sample in range(8)]
    keys = [index.key(sample) for sample in range(8)]
    views = [make_view(spec.views, key, 0, image.size) for key, image in zip(keys, images, strict=True)]
    pixels = torch.from_numpy(np.stack([render(image, view) for image, view in zip(images, views, strict=True)]))
    live = build_from_spec(spec, "dinov2")(pixels.permute(0, 3, 1, 2).float() / 255)
    cached = batch.decode()["dinov2"]
    for level in live.levels:
        cosine = torch.cosine_similarity(live[level].flatten(1).double(), cached[level].flatten(1).double())
        assert cosine.min() > 0.999999


def test_check_live_agrees_with_a_sound_cache_and_not_with_other_features(run, shards, tmp_path):
    run(shards)
    report = check_live(str(tmp_path / "cache"), device="cpu", samples=6)
    assert report.agrees
    assert {each.column.rpartition("-")[0] for each in report.levels} == {"dinov2", "clip", "sam"}
    float16 = [each for each in report.levels if each.column.startswith("dinov2")]
    assert all(each.cosine_min >= 0.999999 for each in float16)
    assert all(each.random for each in report.levels)
    off = replace(report.levels[0], error=report.levels[0].allowed * 2)
    assert not off.agrees


def test_only_an_added_teacher_is_extracted(run, shards, tmp_path, write_spec, teachers, fourth, bytes_of):
    run(shards)
    before = bytes_of(tmp_path / "cache")
    report = run(shards, spec=write_spec(tmp_path / "four.yaml", {**teachers, **fourth}))
    assert set(report.nbytes) == {"siglip"}
    after = bytes_of(tmp_path / "cache")
    assert {name: data for name, data in after.items() if "siglip" not in name} == before
    assert len(after) > len(before)


def test_webdataset_columns_and_principal_components_are_written_as_well(run, shards, tmp_path, write_spec, teachers):
    kept = {"clip": teachers["clip"] | {"encoding": {"kind": "int8", "pca": 16}}, "sam": teachers["sam"]}
    run(shards, spec=write_spec(tmp_path / "tar.yaml", kept, format="webdataset"))
    assert verify(str(tmp_path / "cache"), deep=True).sound
    assert len(FeatureCache.open(str(tmp_path / "cache"))) == 40
    assert check_live(str(tmp_path / "cache"), teachers=["sam"], device="cpu", samples=3).agrees


def test_columns_with_blocks_of_another_size_are_completed_beside_new_ones(
    run, shards, tmp_path, write_spec, teachers, bytes_of
):
    run(shards, teachers=["clip"], limit=16)
    report = run(shards, spec=write_spec(tmp_path / "other.yaml", block=10, codec="zstd"))
    assert report.status == "complete"
    assert {column.blocks_planned for column in ls(str(tmp_path / "cache"))} == {3, 4}
    assert verify(str(tmp_path / "cache"), deep=True).sound


def test_named_teachers_alone_are_extracted_and_unknown_ones_are_refused(run, shards, tmp_path):
    report = run(shards, teachers=["clip"])
    assert set(report.nbytes) == {"clip"}
    with pytest.raises(UsageError, match="did you mean 'clip'"):
        run(shards, teachers=["klip"])


def test_a_second_view_appends_and_leaves_the_first_as_it_is(run, shards, tmp_path, bytes_of):
    run(shards)
    before = {name: data for name, data in bytes_of(tmp_path / "cache").items() if not name.endswith("zarr.json")}
    report = run(shards, views=2)
    assert {block.name[:4] for block in report.blocks} == {"v001"}
    after = bytes_of(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    assert FeatureCache.open(str(tmp_path / "cache")).views == 2
    assert verify(str(tmp_path / "cache"), deep=True).sound


def test_a_limit_leaves_a_partial_column_that_a_full_run_completes(run, shards, tmp_path, bytes_of):
    report = run(shards, limit=20)
    assert report.images == 20
    assert {column.samples for column in ls(str(tmp_path / "cache"))} == {20}
    assert len(FeatureCache.open(str(tmp_path / "cache"), allow_partial=True)) == 20
    assert run(shards, limit=20).status == "nothing to do"
    assert run(shards).status == "complete"
    whole = tmp_path / "whole"
    run(shards, cache=whole)
    assert bytes_of(tmp_path / "cache") == bytes_of(whole)


def test_a_dry_run_says_bytes_and_time_and_begins_no_column(run, shards, tmp_path):
    report = run(shards, dry_run=True)
    assert report.status.startswith("dry run")
    assert not (tmp_path / "cache" / "columns").exists()
    said = "\n".join(run.said)
    assert "dinov2 RANDOM weights: 0 of 3 blocks are there; 40 images in 3 blocks to do" in said
    assert "Images per second of one worker" in said
    assert "About" in said


def test_a_wrong_place_of_the_images_leaves_no_cache(run, tmp_path):
    with pytest.raises(SakError, match="nowhere"):
        run(str(tmp_path / "nowhere"))
    assert not (tmp_path / "cache").exists()


def test_weights_and_devices_that_are_not_there_are_told_before_the_images_are_read(run, shards, tmp_path, write_spec):
    absent = {"dinov2": {"model": "timm/vit_small_patch14_dinov2.lvd142m", "weights": str(tmp_path / "none.pth")}}
    with pytest.raises(SakError, match=r"none\.pth"):
        run(shards, spec=write_spec(tmp_path / "absent.yaml", absent))
    assert run.said == ["Reading the weights of dinov2"]
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device is visible"):
            extract(ExtractConfig(write_spec(tmp_path / "spec.yaml"), shards, str(tmp_path / "cache")))
    assert not (tmp_path / "cache" / "index").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(run, shards, tmp_path, monkeypatch):
    from pipeline.storage.local import LocalFolder

    monkeypatch.setattr(LocalFolder, "free_space", lambda self: 1000)
    with pytest.raises(StorageError, match=r"0\.\d MB to write and 0\.0 MB free.*--ignore-space"):
        run(shards)
    assert not any("Images per second" in line for line in run.said)
    with pytest.raises(StorageError, match="MB free"):
        run(shards, dry_run=True)
    assert any("Images per second" in line for line in run.said)  # a dry run says all it can
    assert run(shards, ignore_space=True).status == "complete"


def test_weights_are_not_read_again_once_their_file_is_known(run, shards, tmp_path, monkeypatch):
    run(shards)
    built = []
    from pipeline.extract import worker as teachers

    original = teachers.build_from_spec
    monkeypatch.setattr(teachers, "build_from_spec", lambda *a: built.append(a[2:]) or original(*a))
    assert run(shards).status == "nothing to do"
    assert set(built) == {("meta",)}


def test_changed_shards_are_other_data_of_which_only_what_is_new_is_extracted(
    run, tmp_path, write_shards, write_shard, jpeg
):
    data = write_shards(tmp_path / "shards", 20)
    run(data)
    write_shard(Path(data) / "train-002.tar", {f"q{number}.jpg": jpeg(100 + number) for number in range(4)})
    report = run(data)
    assert any("train-002.tar is new since it was indexed" in line for line in run.said)
    assert report.images == 4, "what the first data set's columns hold is not made again"
    features = FeatureCache.open(str(tmp_path / "cache"))
    assert len(features.samples) == 24
    assert features.read(features.samples).decode()
    assert not features.partial
    assert verify(str(tmp_path / "cache"), deep=True).sound
    assert run(data).status == "nothing to do"
    assert len(Cache.open(str(tmp_path / "cache")).top.data_keys()) == 2


def test_the_report_has_blocks_versions_hardware_and_settings(run, shards):
    report = run(shards)
    kept = json.loads(Path(report.place).read_text())
    assert {block["name"] for block in kept["blocks"]} == {"v000-b000000", "v000-b000001", "v000-b000002"}
    assert all(block["seconds"] > 0 and block["batch_size"] == 8 for block in kept["blocks"])
    assert kept["surroundings"]["torch"] == torch.__version__
    assert kept["config"]["batch_size"] == "8"
    assert abs(sum(kept["shares"].values()) - 1) < 1e-6
    assert "40 images in" in report.to_text()


TEACHER_MODULE = """
import torch
from torch import nn


class Odd(nn.Module):
    width, depth, patch_size = 8, 4, 8

    def __init__(self, most, bad):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 8, 8)
        torch.manual_seed(0)
        nn.init.normal_(self.project.weight)
        self.most, self.bad = most, bad

    def forward(self, images, levels):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory")
        maps = self.project(images)
        if self.bad:
            maps = torch.where(images.mean((1, 2, 3), keepdim=True) > images.mean((1, 2, 3)).median(), maps / 0, maps)
        return [maps for _ in levels]


def hungry(image_size):
    return Odd(3, False)


def insatiable(image_size):
    return Odd(0, False)


def broken(image_size):
    return Odd(100, True)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch, write_spec):
    """A spec of one custom teacher of this module."""
    (tmp_path / "odd_teachers.py").write_text(TEACHER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_teachers", raising=False)

    def spec(builder):
        teacher = {"model": f"custom:odd_teachers:{builder}", "levels": [2, 4]}
        return write_spec(tmp_path / "odd.yaml", {"odd": teacher})

    return spec


def test_too_little_memory_halves_the_batch_and_the_record_says_so(run, shards, tmp_path, odd):
    report = run(shards, spec=odd("hungry"))
    assert report.status == "complete"
    column = next(iter(Cache.open(str(tmp_path / "cache")).columns))
    from pipeline.cache.column import Column

    records = Column.open(Cache.open(str(tmp_path / "cache")).top, column).records
    assert {record.facts["batch_size"] for record in records.values()} == {2}
    assert {record.facts["batch_size_asked"] for record in records.values()} == {8}
    assert verify(str(tmp_path / "cache"), deep=True).sound


def test_an_image_that_does_not_fit_alone_ends_the_run_with_one_line(run, shards, odd):
    with pytest.raises(SakError, match="one image does not fit"):
        run(shards, spec=odd("insatiable"))


def test_features_that_are_not_finite_stop_the_run_with_teacher_level_and_sample(run, shards, tmp_path, odd):
    with pytest.raises(SakError, match=r"teacher odd, level 2, sample 'p\d{4}': features are not finite"):
        run(shards, spec=odd("broken"))
    assert not list((tmp_path / "cache").rglob("records/*.json"))
    assert not list((tmp_path / "cache").rglob("*.part"))
