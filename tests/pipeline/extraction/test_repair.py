"""Damaged blocks, and they alone, are extracted again to the bytes they had."""

from pathlib import Path

import pytest

from pipeline.cache.folder import Cache
from pipeline.cache.verify import verify
from pipeline.cluster import ClusterConfig
from pipeline.extraction.repair import RepairConfig, repair
from pipeline.images.errors import StaleIndexError
from sak.errors import UsageError


@pytest.fixture
def cache(run, shards, tmp_path) -> Path:
    run(shards, views=2)
    return tmp_path / "cache"


@pytest.fixture
def mend(scheduler, cache):
    def mend_here(**config):
        cluster = ClusterConfig(scheduler=scheduler, device="cpu")
        return repair(RepairConfig(str(cache), batch_size=3, cluster=cluster, **config))

    return mend_here


def _column(cache: Path, teacher: str) -> Path:
    return next(cache / place.path for place in Cache.open(cache).columns if place.teacher == teacher)


def _flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_exactly_the_damaged_blocks_are_extracted_again_byte_for_byte(cache, mend, bytes_of):
    before = bytes_of(cache)
    dino, clip = _column(cache, "dinov2"), _column(cache, "clip")
    _flip(dino / "data/l2/values/c.0.1.0.0")
    (clip / "views/v001-b000002.bin").unlink()
    (clip / "data/l1/values/c.0.0.0.0").write_bytes(b"")
    untouched = {path: path.stat().st_mtime_ns for path in (dino / "records").iterdir()}
    report = mend()
    assert {(place.teacher, view, block) for place, view, block in report.blocks} == {
        ("dinov2", 0, 1),
        ("clip", 1, 2),
        ("clip", 0, 0),
    }
    assert report.sound
    assert bytes_of(cache) == before
    changed = [path.name for path, time in untouched.items() if path.stat().st_mtime_ns != time]
    assert changed == ["v000-b000001.json"]
    assert "3 blocks extracted again" in report.to_text()


def test_a_damaged_record_and_damaged_metadata_are_mended(cache, mend, bytes_of):
    before = bytes_of(cache)
    sam = _column(cache, "sam")
    _flip(sam / "records/v001-b000000.json")
    (sam / "data/l1/values/zarr.json").unlink()
    assert mend().sound
    assert bytes_of(cache) == before


def test_a_sound_cache_is_left_alone(mend):
    report = mend()
    assert report.sound
    assert not report.blocks


def test_without_the_images_nothing_is_withdrawn(cache, mend, shards, tmp_path):
    _flip(_column(cache, "dinov2") / "data/l2/values/c.0.1.0.0")
    records = sorted(cache.rglob("records/*.json"))
    with pytest.raises(StaleIndexError):
        mend(data=str(_other_data(tmp_path)))
    assert sorted(cache.rglob("records/*.json")) == records


def _other_data(tmp_path: Path) -> Path:
    import io

    from PIL import Image

    folder = tmp_path / "other"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "JPEG")
    (folder / "x.jpg").write_bytes(buffer.getvalue())
    return folder


def test_a_damaged_manifest_is_left_and_said(cache, mend):
    _flip(_column(cache, "sam") / "manifest.json")
    report = mend()
    assert not report.sound
    assert "manifest.json" in report.to_text()


def test_overlays_are_repaired_one_by_one():
    with pytest.raises(UsageError, match="one by one"):
        repair(RepairConfig("a:b"))


def test_verify_finds_what_was_planted(cache):
    _flip(_column(cache, "dinov2") / "data/l2/values/c.0.1.0.0")
    assert len(verify(str(cache), deep=True).damaged_blocks) == 1
