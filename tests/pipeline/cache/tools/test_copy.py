"""`copy`: to another place or format, and on from where it stopped."""

import numpy as np
import pytest

from pipeline.cache.folder import Cache
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.tools.copy import copy_cache
from pipeline.cache.tools.inventory import ls, stats
from pipeline.cache.tools.verify import verify
from pipeline.storage import open_location
from sak.errors import UsageError


@pytest.fixture
def filled(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as), bad={"n003": "truncated file"})
    maker.write("dino", views=2)
    maker.write("clip")
    maker.write("sam")
    return maker


def everything(place, view=0, teachers=None):
    cache = FeatureCache.open(place, teachers)
    batch = cache.read(cache.samples_in(view), view)
    return batch.keys, batch.views.rows.tobytes(), batch.arrays


def same(one, other):
    assert one[:2] == other[:2]
    for teacher, arrays in one[2].items():
        for name, array in arrays.items():
            assert np.array_equal(array, other[2][teacher][name], equal_nan=True), (teacher, name)


def test_a_copy_in_the_other_format_holds_equal_arrays(filled, stored_as, tmp_path):
    other = {"zarr": "webdataset", "webdataset": "zarr"}[stored_as]
    report = copy_cache(filled.place, tmp_path / "copy", to_format=other)
    assert (report.columns, report.copied, report.already_there, report.left) == (3, 12, 0, 0)
    same(everything(filled.place), everything(tmp_path / "copy"))
    same(everything(filled.place, 1, ["dino"]), everything(tmp_path / "copy", 1, ["dino"]))
    assert {each.format for each in ls(tmp_path / "copy")} == {other}
    assert verify(tmp_path / "copy", deep=True).sound
    back = copy_cache(tmp_path / "copy", tmp_path / "back", to_format=stored_as)
    assert back.copied == 12
    same(everything(filled.place), everything(tmp_path / "back"))


def test_records_keep_what_is_known_of_their_blocks(filled, tmp_path):
    copy_cache(filled.place, tmp_path / "copy")
    assert [each.summary for each in stats(tmp_path / "copy")] == [each.summary for each in stats(filled.place)]
    source, copied = (Cache.open(place) for place in (filled.place, tmp_path / "copy"))
    for place in source.columns:
        from pipeline.cache.column import Column

        one, other = Column.open(source.top, place), Column.open(copied.top, place)
        assert one.calibration().digest == other.calibration().digest
        assert one.manifest.spec_key == other.manifest.spec_key
        for where, record in one.records.items():
            assert other.records[where].absent == record.absent
            assert other.records[where].facts.items() >= record.facts.items()


def test_a_copy_goes_on_where_it_stopped(filled, tmp_path, monkeypatch):
    from pipeline.cache.writer import BlockJob

    finish, count = BlockJob.finish, []

    def failing(self, **fields):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        return finish(self, **fields)

    monkeypatch.setattr(BlockJob, "finish", failing)
    with pytest.raises(KeyboardInterrupt):
        copy_cache(filled.place, tmp_path / "copy")
    monkeypatch.undo()
    report = copy_cache(filled.place, tmp_path / "copy")
    assert (report.copied, report.already_there) == (7, 5)
    assert copy_cache(filled.place, tmp_path / "copy").copied == 0
    same(everything(filled.place), everything(tmp_path / "copy"))


def test_a_block_that_grew_is_copied_again(writer, tmp_path):
    maker = writer()
    maker.write("dino", limit=10)
    copy_cache(maker.place, tmp_path / "copy")
    maker.write("dino")
    assert copy_cache(maker.place, tmp_path / "copy").copied == 2
    same(everything(maker.place), everything(tmp_path / "copy"))


def test_a_copy_to_a_url_and_back(filled, tmp_path):
    url = f"memory://copy-{tmp_path.name}"
    copy_cache(filled.place, url, teachers=["clip", "sam"])
    assert open_location(url).exists("cache.json")
    same(everything(filled.place, teachers=["clip", "sam"]), everything(url))
    copy_cache(url, tmp_path / "back")
    same(everything(filled.place, teachers=["clip", "sam"]), everything(tmp_path / "back"))


def test_an_overlay_is_copied_as_one(writer, tmp_path):
    below = writer("ro")
    below.write("dino", limit=8)
    overlay = writer(place=f"{writer('rw').place}:{below.place}")
    overlay.write("dino")
    copy_cache(overlay.place, tmp_path / "copy")
    same(everything(overlay.place), everything(tmp_path / "copy"))


def test_a_block_another_writer_is_at_work_on_is_left_to_it(writer, tmp_path):
    from pipeline.cache.lease import Owner

    maker = writer()
    maker.write("dino")
    there = writer("copy")
    column = there.open("dino", owner=Owner("another machine", 1, 1, "x"))
    with column.lease(0, 1):
        report = copy_cache(maker.place, there.place)
    assert (report.copied, report.left) == (2, 1)


def test_compressed_columns_are_converted_too(writer, made, tmp_path):
    maker = writer(spec=made.spec(codec="zstd"))
    maker.write("dino")
    copy_cache(maker.place, tmp_path / "tars", to_format="webdataset")
    copy_cache(tmp_path / "tars", tmp_path / "plain", to_format="zarr")
    copy_cache(tmp_path / "plain", tmp_path / "packed", codec="zstd")
    assert [ls(tmp_path / name)[0].codec for name in ("tars", "plain", "packed")] == ["none", "none", "zstd"]
    for name in ("tars", "plain", "packed"):
        same(everything(maker.place), everything(tmp_path / name))


def test_damaged_samples_are_not_copied_on(filled, stored_as, tmp_path):
    from sak.errors import SakError

    column = filled.open("dino").column
    path = f"data/{column.store.files(0, 1)[0]}"
    data = bytearray(column.location.read_bytes(path))
    data[650 if stored_as == "webdataset" else 10] ^= 1
    column.location.write_bytes(path, bytes(data))
    with pytest.raises(SakError, match="sample 8 of view 0 is damaged"):
        copy_cache(filled.place, tmp_path / "copy")
    assert verify(tmp_path / "copy", deep=True).sound


def test_wrong_wishes_are_refused(filled, tmp_path):
    with pytest.raises(UsageError, match="no format 'zar'; did you mean 'zarr'"):
        copy_cache(filled.place, tmp_path / "copy", to_format="zar")
    with pytest.raises(UsageError, match="onto itself"):
        copy_cache(filled.place, filled.place)
    with pytest.raises(UsageError, match="no features of teacher 'dion'; did you mean 'dino'"):
        copy_cache(filled.place, tmp_path / "copy", teachers=["dion"])
