"""Columns: what the first manifest fixes, what counts as there, and who may publish."""

import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.cache.column import CALIBRATION, Column
from pipeline.cache.folder import Cache, CacheFolder, ColumnId, split_overlay
from pipeline.cache.lease import LeaseLostError, Owner
from pipeline.cache.manifest import CacheError, Manifest, NewerSchemaError, seal, unseal
from pipeline.cache.records import BlockRecord
from pipeline.cache.stores.base import DamageError
from pipeline.cache.tools.verify import verify
from pipeline.cache.writer import WritableColumn
from pipeline.images.views import ViewPolicy
from sak.errors import UsageError

BLOCKS = [(0, 0), (0, 1), (0, 2)]


def elsewhere(token):
    return Owner("another machine", 7, 7, token)


def test_resume_is_planned_minus_recorded(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as))
    column = maker.open("dino")
    assert column.pending(1) == BLOCKS
    maker.write_block(column, 0, 1)
    assert column.pending(1) == [(0, 0), (0, 2)]
    assert column.pending(2) == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    maker.write("dino", views=2)
    assert column.pending(2) == []


def test_a_block_without_a_record_is_not_there_whatever_its_files_hold(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as))
    column = maker.write("dino")
    column.column.location.delete("records/v000-b000001.json")
    assert column.pending(1) == [(0, 1)]
    assert not column.column.fresh().present(0)[8:16].any()
    maker.write("dino")
    assert column.pending(1) == []


def test_a_job_left_without_finish_leaves_nothing(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as))
    column = maker.open("dino")
    before = {entry.path for entry in column.column.location.walk()}
    lease = column.lease(0, 0)
    view, crc = made.mark(maker.spec.views, "n000", 0)
    arrays = {a.name: np.zeros((1, *a.shape), a.dtype) for a in column.manifest.layout.arrays}
    with lease, column.write(lease, 0, 0) as job:
        job.append([0], arrays, [view], [crc])
    left = {entry.path for entry in column.column.location.walk()} - before
    assert not [path for path in left if not path.endswith("zarr.json")]
    assert column.pending(1) == BLOCKS


def stored(column, view, samples):
    """What our reader reads: array name -> (n, ...)."""
    return column.store.read(view, samples, [array.name for array in column.manifest.layout.arrays])


def test_zarr_opens_a_column_read_only(writer):
    column = writer(bad={"n003": "truncated file"}).write("dino", views=2).column.fresh()
    group = column.zarr_group()
    assert group.read_only
    for name, values in stored(column, 1, range(20)).items():
        np.testing.assert_array_equal(group[name][1], values)


def test_webdataset_gives_the_samples_that_have_records(writer, made):
    keys = tuple(f"n01.x/é {number:02d}" for number in range(20))
    maker = writer(spec=made.spec(format="webdataset"), keys=keys, bad={keys[3]: "truncated file"})
    column = maker.write("dino", views=2).column.fresh()
    column.location.delete("records/v001-b000001.json")
    present = np.flatnonzero(column.fresh().present(1))
    samples = list(column.fresh().webdataset(view=1))
    assert [sample["__key__"] for sample in samples] == [keys[number] for number in present]
    assert len(samples) == 11
    for name, values in stored(column, 1, present).items():
        read = np.stack([sample[name] for sample in samples])
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values)


def test_workers_of_a_loader_share_the_tars(writer, made):
    column = writer(spec=made.spec(format="webdataset")).write("dino").column
    loader = DataLoader(column.webdataset(), batch_size=None, num_workers=2)
    assert sorted(sample["__key__"] for sample in loader) == [f"n{number:03d}" for number in range(20)]


def test_a_column_is_opened_as_what_it_is(writer, stored_as, made):
    column = writer(spec=made.spec(format=stored_as)).write("dino").column
    right, wrong = ("zarr_group", "webdataset") if stored_as == "zarr" else ("webdataset", "zarr_group")
    with pytest.raises(UsageError, match=rf"lies as {stored_as}; open it with {right}\(\), or copy it .* --format"):
        getattr(column, wrong)()
    if stored_as == "webdataset":
        with pytest.raises(CacheError, match="no block of view 5 is there; extract it"):
            column.webdataset(5)


def test_a_limit_leaves_a_partial_block_that_a_larger_limit_completes(writer, made):
    maker = writer()
    column = maker.write("dino", limit=10)
    assert column.pending(1, limit=10) == []
    assert column.pending(1, limit=11) == [(0, 1)]
    assert column.pending(1) == [(0, 1), (0, 2)]
    assert int(column.column.fresh().present(0).sum()) == 10
    maker.write("dino")
    assert column.pending(1) == []
    assert column.column.fresh().present(0).all()


def test_absent_samples_count_as_attempted_and_say_why(writer):
    column = writer(bad={"n003": "truncated file"}).write("dino")
    assert column.pending(1) == []
    reader = column.column.fresh()
    assert list(np.flatnonzero(~reader.present(0))) == [3]
    assert list(np.flatnonzero(reader.absent(0))) == [3]


def test_the_first_manifest_fixes_format_block_and_codec(writer, made):
    first = writer(spec=made.spec(block=8)).open("dino")
    second = writer(spec=made.spec(block=4, format="webdataset")).open("dino")
    assert second.manifest == first.manifest
    assert second.manifest.layout.block == 8
    assert second.manifest.format == "zarr"


def test_another_column_under_the_same_name_is_refused_with_what_differs(writer, made):
    maker = writer()
    there = maker.open("dino")
    wanted = made.manifest("dino", maker.spec, maker.index)
    other = {**wanted.document, "levels": [1, 4]}
    pretender = type(wanted)(**{**vars(wanted), "document": other})
    with pytest.raises(CacheError, match=r"levels: here \[2, 4\], wanted \[1, 4\]"):
        WritableColumn.create_or_open(Cache.open(maker.place), pretender)
    assert there.pending(1) == BLOCKS


def test_the_first_calibration_holds(writer, made):
    maker = writer()
    column = maker.open("dino")
    first = column.calibration()
    other = writer("other", keys=("a", "b", "c")).open("dino").calibration()
    assert other.digest != first.digest
    assert column.publish_calibration(other).digest == first.digest


def test_blocks_of_two_calibrations_are_refused(writer):
    maker = writer()
    column = maker.write("dino").column
    record = column.read_record("v000-b000001.json")
    changed = type(record)(**{**vars(record), "calibration": "0" * 64})
    column.location.write_bytes("records/v000-b000001.json", changed.to_bytes())
    with pytest.raises(CacheError, match="blocks of 2 calibrations"):
        _ = column.fresh().records


def test_a_block_of_another_calibration_is_not_published(writer):
    maker = writer()
    column = maker.open("dino")
    lease = column.lease(0, 0)
    with lease, column.write(lease, 0, 0) as job, pytest.raises(CacheError, match="calibration"):
        job.finish(fidelity={}, facts={}, calibration="0" * 64)
    assert column.pending(1) == BLOCKS


def test_two_extractions_share_the_blocks(writer):
    maker = writer()
    one = maker.open("dino", owner=elsewhere("one"))
    two = maker.open("dino", owner=elsewhere("two"))
    lease = one.lease(0, 0)
    assert two.lease(0, 0) is None
    assert maker.write_block(two, 0, 1)
    with lease, one.write(lease, 0, 0) as job:
        maker.fill(one, job, 0, 0)
    assert one.pending(1) == two.pending(1) == [(0, 2)]
    assert one.lease(0, 1) is None, "finished by the other meanwhile"
    assert verify(maker.place, deep=True).sound


def test_many_writers_at_once_make_one_whole_column(writer, made):
    maker = writer(keys=tuple(f"n{number:03d}" for number in range(40)), spec=made.spec(block=4))
    written, errors = [], []

    def extract(token):
        try:
            column = maker.open("dino", owner=elsewhere(token))
            while pending := column.pending(1):
                written.extend(each for each in pending if maker.write_block(column, *each))
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=extract, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(written) == [(0, block) for block in range(10)]
    assert verify(maker.place, deep=True).sound


def test_who_has_lost_the_lease_does_not_publish(writer, stored_as, made):
    maker = writer(spec=made.spec(format=stored_as))
    slow = maker.open("dino", owner=elsewhere("slow"))
    lease = slow.leases.acquire("v000-b000000")
    with slow.write(lease, 0, 0) as job:
        lease.leases.location.delete(lease.file)  # as if it had expired and been taken over
        fast = maker.open("dino", owner=elsewhere("fast"))
        written = maker.write_block(fast, 0, 0)
        with pytest.raises(LeaseLostError):
            maker.fill(slow, job, 0, 0)
    assert slow.column.fresh().records[0, 0] == written
    assert verify(maker.place, deep=True).sound


def test_a_frozen_writer_does_not_publish(writer):
    maker = writer()
    column = maker.open("dino", owner=elsewhere("frozen"), lease_seconds=0.05)
    lease = column.lease(0, 0)
    time.sleep(0.1)
    with pytest.raises(LeaseLostError), column.write(lease, 0, 0):
        pass
    assert column.pending(1) == BLOCKS


def test_an_overlay_writes_what_is_missing_below_with_its_calibration(writer):
    below = writer("ro").write("dino", limit=8)
    overlay = writer(place=f"{writer('rw').place}:{writer('ro').place}")
    column = overlay.open("dino")
    assert column.pending(1) == [(0, 1), (0, 2)]
    overlay.write("dino")
    assert column.pending(1) == []
    assert sorted(column.column.fresh().records) == [(0, 1), (0, 2)]
    assert column.calibration().digest == below.calibration().digest


def test_a_damaged_manifest_is_a_clear_error(writer):
    column = writer().open("dino").column
    data = column.location.read_bytes("manifest.json")
    for damaged in (b"", b"{}", b"[1]", data[:-30], data.replace(b'"block": 8', b'"block": 9'), b"\xff" + data[1:]):
        column.location.write_bytes("manifest.json", damaged)
        with pytest.raises(DamageError, match=r"manifest\.json: damaged"):
            Column.open(column.folder, column.id)


def test_any_changed_byte_of_manifest_or_record_is_found(writer):
    column = writer().write("dino").column
    for path, read in (
        ("manifest.json", Manifest.from_bytes),
        ("records/v000-b000000.json", BlockRecord.from_bytes),
        ("../../../cache.json", unseal),
    ):
        data = Path(column.location.url, path).read_bytes()
        for place in range(len(data)):
            with pytest.raises((DamageError, NewerSchemaError)):
                read(_flipped(data, place), path)


def _flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_manifest_in_another_place_is_refused(writer):
    column = writer().open("dino").column
    moved = ColumnId("dino-0000", column.id.data)
    column.folder.at(moved).write_bytes("manifest.json", column.location.read_bytes("manifest.json"))
    with pytest.raises(CacheError, match="its manifest is that of"):
        Column.open(column.folder, moved)
    with pytest.raises(CacheError, match="without a manifest"):
        Column.open(column.folder, ColumnId("dino-1", "2"))


def test_a_cache_from_a_newer_schema_asks_for_an_upgrade(writer):
    place = writer().open("dino").column.folder.location
    newer = json.loads(seal({"kind": "sak feature cache"})) | {"schema": 99}
    place.write_bytes("cache.json", json.dumps(newer).encode())
    with pytest.raises(NewerSchemaError, match="schema 99, this version reads up to 1; upgrade"):
        CacheFolder.open(place)


def test_a_folder_that_is_no_cache_says_so(tmp_path):
    with pytest.raises(CacheError, match="no feature cache here"):
        CacheFolder.open(tmp_path)
    (tmp_path / "cache.json").write_bytes(seal({"kind": "another"}))
    with pytest.raises(CacheError, match="not that of a feature cache"):
        CacheFolder.open(tmp_path)


def test_a_lost_or_changed_calibration_is_found_before_anything_is_decoded(writer):
    column = writer().write("dino").column
    data = column.location.read_bytes(CALIBRATION)
    column.location.write_bytes(CALIBRATION, _flipped(data, len(data) - 3))
    with pytest.raises(Exception, match="blocks were made with"):
        column.fresh().codec()
    column.location.delete(CALIBRATION)
    with pytest.raises(DamageError, match="gone, and no block can be read without it"):
        column.fresh().codec()


def test_boxes_flips_and_crcs_come_back_as_views(writer, made):
    maker = writer()
    column = maker.write("dino").column.fresh()
    from pipeline.cache.stores.base import StoredViews

    stored = StoredViews(column.stored_views(0, np.asarray([19, 2, 9])), 0, (32, 32))
    for row, key in enumerate(("n019", "n002", "n009")):
        view, crc = made.mark(maker.spec.views, key, 0)
        assert stored.view(row) == view
        assert int(stored.crcs[row]) == crc


def test_a_center_crop_keeps_the_size_it_scales_to(writer, made):
    policy = {"kind": "center_crop", "size": 32}
    maker = writer(spec=made.spec(views=policy))
    column = maker.write("dino").column.fresh()
    from pipeline.cache.stores.base import StoredViews

    stored = StoredViews(column.stored_views(0, np.asarray([4])), 0, (32, 32)).view(0)
    assert stored == made.mark(ViewPolicy(**policy), "n004", 0)[0]
    assert stored.scaled == (32, 42)


@pytest.mark.parametrize(
    ("place", "layers"),
    [
        ("rw:ro", ["rw", "ro"]),
        ("s3://b/c:/x/y", ["s3://b/c", "/x/y"]),
        ("http://h:90/x:/y", ["http://h:90/x", "/y"]),
        ("simplecache::s3://b/c", ["simplecache::s3://b/c"]),
    ],
)
def test_overlays_are_split_at_colons_that_are_not_part_of_urls(place, layers):
    assert split_overlay(place) == layers


def test_an_empty_place_is_refused():
    with pytest.raises(UsageError, match="names no cache"):
        split_overlay("")


def test_boxes_dropped_from_memory_while_another_thread_reads_them_are_still_given(writer):
    class Emptied(dict):
        """What is kept, emptied by another thread after every look."""

        def get(self, key):
            found = super().get(key)
            self.clear()
            return found

        def __contains__(self, key):
            there = super().__contains__(key)
            self.clear()
            return there

        def __setitem__(self, key, rows):
            """Gone before it can be looked up."""

    column = writer().write("dino").column.fresh()
    expected = column.block_views(0, 0)
    column.__dict__["_views"] = Emptied({(0, 0): expected})
    assert (column.block_views(0, 0) == expected).all()
    assert (column.block_views(0, 0) == expected).all()


def test_a_cache_folder_can_be_imported_first():
    """Once the stores' package imported it in turn."""
    subprocess.run([sys.executable, "-c", "import pipeline.cache.folder"], check=True)
