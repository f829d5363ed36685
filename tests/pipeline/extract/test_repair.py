"""Damaged blocks, and they alone, are extracted again to the bytes they had."""

from pathlib import Path

import pytest

from pipeline.cache.folder import Cache
from pipeline.cache.tools.verify import verify
from pipeline.cluster import ClusterConfig
from pipeline.extract.repair import RepairConfig, repair
from pipeline.images.source import StaleIndexError
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
    report = mend()
    assert report.sound
    assert [(place.teacher, view, block) for place, view, block in report.blocks] == [("sam", 1, 0)]
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


def test_a_damaged_manifest_is_left_and_said_until_the_spec_mends_it(cache, mend, bytes_of, tmp_path, write_spec):
    before = bytes_of(cache)
    _flip(_column(cache, "sam") / "manifest.json")
    _flip(_column(cache, "dinov2") / "data/l2/values/c.0.1.0.0")
    report = mend()
    assert "manifest.json" in report.to_text()
    assert [place.teacher for place, *_ in report.blocks] == ["dinov2"]
    other = write_spec(tmp_path / "other.yaml", views={"kind": "resize", "size": 56})
    assert not mend(spec=other).sound
    assert mend(spec=str(tmp_path / "spec.yaml")).sound
    assert bytes_of(cache) == before


def test_a_damaged_calibration_is_made_again_and_no_block_is_lost(cache, mend, bytes_of):
    before = bytes_of(cache)
    clip = _column(cache, "clip")
    _flip(clip / "calibration.safetensors", at=-1)
    (_column(cache, "sam") / "calibration.safetensors").unlink()
    times = {path: path.stat().st_mtime_ns for path in clip.rglob("records/*.json")}
    report = mend()
    assert report.sound
    assert not report.blocks
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert bytes_of(cache) == before


def test_a_calibration_that_comes_out_otherwise_is_not_published(cache, mend, monkeypatch):
    clip = _column(cache, "clip")
    _flip(clip / "calibration.safetensors", at=-1)
    damaged, records = (clip / "calibration.safetensors").read_bytes(), sorted(clip.rglob("records/*.json"))
    monkeypatch.setattr("pipeline.extract.calibrate.calibration_samples", lambda keys, count, seed: range(3))
    report = mend()
    assert not report.sound
    assert (clip / "calibration.safetensors").read_bytes() == damaged
    assert sorted(clip.rglob("records/*.json")) == records


def test_overlays_are_repaired_one_by_one():
    with pytest.raises(UsageError, match="one by one"):
        repair(RepairConfig("a:b"))


def test_verify_finds_what_was_planted(cache):
    _flip(_column(cache, "dinov2") / "data/l2/values/c.0.1.0.0")
    assert len(verify(str(cache), deep=True).damaged_blocks) == 1
