"""One contract, kept by both stores, locally and behind a URL."""

import multiprocessing
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache.stores import files as open_files
from pipeline.cache.stores.base import ArrayLayout, ColumnLayout, DamageError, FileRecord, allocate
from pipeline.cache.stores.files import Staging
from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import StorageError, open_location
from pipeline.storage import location as errors

NAN = float("nan")
ARRAYS = (
    ArrayLayout("l3/values", "int8", (6, 5), 0),
    ArrayLayout("l3/scales", "float16", (6,), NAN),
    ArrayLayout("l9/values", "uint16", (6, 5), 0x7FC0),
    ArrayLayout("l9/scales", "float32", (3, 2, 2), NAN),
    ArrayLayout("l9/leftover", "float32", (), NAN),
)
NAMES = [array.name for array in ARRAYS]
LAYOUT = ColumnLayout(ARRAYS, samples=13, block=5)
VIEWS = 2
ABSENT = (1, 7)  # in both views
KEYS = [f"n{i // 4:02d}/img.{i}" for i in range(100)]


def make_data(layout, views=VIEWS, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for array in layout.arrays:
        made[array.name] = rng.integers(-100, 100, (views, layout.samples, *array.shape)).astype(array.dtype)
    return made


DATA = make_data(LAYOUT)


def make_store(kind, place, layout=LAYOUT, **options):
    if kind == "zarr":
        return ZarrStore(open_location(place), layout, **options)
    return TarStore(open_location(place), layout, KEYS.__getitem__, **options)


def write_block(store, view, block, data, absent=ABSENT, step=2):
    samples = [sample for sample in store.layout.block_samples(block) if sample not in absent]
    first = store.layout.block_samples(block).start
    with store.open_block(view, block) as writer:
        for start in range(0, len(samples), step):
            part = np.array(samples[start : start + step], np.int64)
            writer.append(part - first, {name: values[view, part] for name, values in data.items()})
        return writer.finish()


def write_column(store, data=DATA, views=VIEWS, absent=ABSENT):
    store.prepare(views)
    return {
        (view, block): write_block(store, view, block, data, absent)
        for view in range(views)
        for block in range(store.layout.blocks)
    }


@pytest.fixture(params=["zarr", "webdataset"])
def kind(request):
    return request.param


@pytest.fixture
def column(kind, tmp_path):
    """A store with a whole column in it, and its records."""
    store = make_store(kind, tmp_path / "column")
    return store, write_column(store)


def same(array, expected):
    return np.array_equal(array, expected, equal_nan=array.dtype.kind == "f")


PRESENT = [sample for sample in range(LAYOUT.samples) if sample not in ABSENT]


def test_any_samples_of_any_views_come_in_the_order_asked(column):
    store, _ = column
    samples = np.array([12, 0, 5, 5, 3, 12, 9])
    views = np.array([0, 1, 1, 0, 0, 1, 0])
    read = store.read(views, samples, NAMES)
    assert list(read) == NAMES
    for name in NAMES:
        assert same(read[name], DATA[name][views, samples]), name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    samples=st.lists(st.sampled_from(PRESENT), max_size=30),
    view=st.integers(0, 1),
    names=st.lists(st.sampled_from(NAMES), unique=True),
)
def test_any_request_gives_what_was_written(column, samples, view, names):
    read = column[0].read(view, samples, names)
    assert list(read) == names
    for name in names:
        assert read[name].shape == (len(samples), *LAYOUT[name].shape)
        assert same(read[name], DATA[name][view, samples])


def test_blocks_come_whole_and_in_order_the_last_one_short(column):
    store, _ = column
    for block, (start, stop) in enumerate([(0, 5), (5, 10), (10, 13)]):
        read = store.read(1, LAYOUT.block_samples(block), ["l3/values"])["l3/values"]
        there = [sample for sample in range(start, stop) if sample not in ABSENT]
        assert len(read) == stop - start
        assert same(read[np.array(there) - start], DATA["l3/values"][1, there])


def test_absent_samples_read_as_the_fill_and_are_told_apart_from_zeros(kind, tmp_path):
    store = make_store(kind, tmp_path)
    zeros = {name: np.zeros_like(values) for name, values in DATA.items()}
    write_column(store, zeros)
    read = store.read(0, [0, 1, 2], NAMES)
    for name in NAMES:
        assert not read[name][[0, 2]].any(), "written zeros are zeros"
        fill = np.full(LAYOUT[name].shape, LAYOUT[name].fill, LAYOUT[name].dtype)
        assert same(read[name][1], fill)
    assert store.present(0, 0).tolist() == [True, False, True, True, True]
    assert store.present(1, 1).tolist() == [True, True, False, True, True]
    assert store.present(1, 2).tolist() == [True, True, True]


def test_a_block_of_nothing_is_written_and_not_missing(kind, tmp_path):
    store = make_store(kind, tmp_path)
    store.prepare(1)
    records = write_block(store, 0, 1, DATA, absent=range(LAYOUT.samples))
    assert not store.present(0, 1).any()
    assert np.isnan(store.read(0, [6], ["l3/scales"])["l3/scales"]).all()
    assert store.check(0, 1, records, deep=True) == ()


def test_results_go_into_the_buffers_given(column):
    store, _ = column
    out = allocate(LAYOUT, NAMES, 3)
    addresses = {name: array.ctypes.data for name, array in out.items()}
    for samples in ([0, 2, 3], [12, 10, 4]):
        read = store.read(1, samples, NAMES, out)
        for name in NAMES:
            assert read[name].ctypes.data == addresses[name]
            assert read[name].ctypes.data % 4096 == 0
            assert same(out[name], DATA[name][1, samples])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda out: out[:2], "must be int8"),
        (lambda out: out.astype("uint8"), "must be int8"),
        (lambda out: np.asfortranarray(out), "contiguous"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(column, wrong, what):
    out = allocate(LAYOUT, ["l3/values"], 3)
    with pytest.raises(ValueError, match=what):
        column[0].read(0, [0, 2, 3], ["l3/values"], {"l3/values": wrong(out["l3/values"])})


def test_read_only_buffers_and_missing_ones_are_refused(column):
    out = allocate(LAYOUT, ["l3/values"], 1)
    out["l3/values"].flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        column[0].read(0, [0], ["l3/values"], out)
    with pytest.raises(ValueError, match="got nothing"):
        column[0].read(0, [0], ["l3/values"], {})


def test_samples_views_and_names_that_are_not_there_are_refused(column):
    store, _ = column
    for samples in ([13], [-1]):
        with pytest.raises(IndexError, match="of 13"):
            store.read(0, samples, NAMES)
    with pytest.raises(IndexError, match="view -1"):
        store.read(-1, [0], NAMES)
    with pytest.raises(KeyError, match="l3/values"):
        store.read(0, [0], ["l4/values"])
    with pytest.raises(DamageError, match="missing"):
        store.read(7, [0], NAMES)


def test_the_two_stores_hold_the_same_and_copy_into_each_other(tmp_path):
    first, second = make_store("zarr", tmp_path / "z"), make_store("webdataset", tmp_path / "t")
    write_column(first)
    for view in range(VIEWS):
        for block in range(LAYOUT.blocks):
            there = first.present(view, block)
            read = first.read(view, LAYOUT.block_samples(block), NAMES)
            with second.open_block(view, block) as writer:
                writer.append(np.flatnonzero(there), {name: read[name][there] for name in NAMES})
                records = writer.finish()
            assert second.check(view, block, records, deep=True) == ()
            again = second.read(view, LAYOUT.block_samples(block), NAMES)
            assert all(same(again[name], read[name]) for name in NAMES)


def test_equal_samples_make_equal_bytes_however_they_are_batched(kind, tmp_path):
    stores = [make_store(kind, tmp_path / name) for name in "ab"]
    records = [write_block(store, 0, 0, DATA, step=step) for store, step in zip(stores, (1, 4), strict=True)]
    assert records[0] == records[1]
    for record in records[0]:
        assert stores[0].location.read_bytes(record.path) == stores[1].location.read_bytes(record.path)


def test_records_hold_size_and_checksum_of_every_file(column):
    store, records = column
    for (view, block), files in records.items():
        assert tuple(file.path for file in files) == store.files(view, block)
        for file in files:
            data = store.location.read_bytes(file.path)
            assert file.bytes == len(data)
            assert file.digest.startswith("frame-sha256:")
        assert store.check(view, block, files, deep=True) == ()
    assert store.check_metadata(VIEWS) == ()


# Writing


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_nothing_of_a_block_is_seen_before_it_is_finished_nor_left_when_it_fails(kind, tmp_path):
    store = make_store(kind, tmp_path)
    store.prepare(1)
    before = tree(tmp_path)
    part = {name: values[0, :2] for name, values in DATA.items()}
    writer = store.open_block(0, 0)
    writer.append([0, 1], part)
    assert [name for name in tree(tmp_path) if not name.endswith(".part")] == before
    writer.__exit__(RuntimeError, RuntimeError("teacher fell over"), None)
    assert tree(tmp_path) == before
    with store.open_block(0, 0) as unfinished:
        unfinished.append([0, 1], part)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("positions", [[1, 0], [0, 0], [4, 5], [-1, 0]])
def test_positions_must_ascend_within_the_block(kind, tmp_path, positions):
    store = make_store(kind, tmp_path)
    with store.open_block(0, 0) as writer, pytest.raises(ValueError, match="ascend"):
        writer.append(positions, {name: values[0, :2] for name, values in DATA.items()})


def test_positions_of_a_partial_last_block_end_with_the_samples(kind, tmp_path):
    store = make_store(kind, tmp_path)
    with store.open_block(0, 2) as writer, pytest.raises(ValueError, match="to 2"):
        writer.append([3], {name: values[0, :1] for name, values in DATA.items()})


def test_arrays_must_be_those_of_the_layout(kind, tmp_path):
    store = make_store(kind, tmp_path)
    part = {name: values[0, :1] for name, values in DATA.items()}
    with store.open_block(0, 0) as writer:
        for wrong, what in (
            ({**part, "l3/scales": part["l3/scales"].astype("float32")}, "l3/scales must be float16"),
            ({**part, "l3/scales": part["l3/scales"][:, :3]}, r"l3/scales must be float16 \(1, 6\)"),
            ({**part, "l4/values": part["l3/values"]}, "every array"),
            ({"l3/values": part["l3/values"]}, "every array"),
        ):
            with pytest.raises(ValueError, match=what):
                writer.append([0], wrong)
        writer.append([0], part)
        writer.finish()
    assert same(store.read(0, [0], NAMES)["l3/scales"], part["l3/scales"])


def test_a_finished_or_aborted_block_takes_nothing_more(kind, tmp_path):
    store = make_store(kind, tmp_path)
    part = {name: values[0, :1] for name, values in DATA.items()}
    with store.open_block(0, 0) as writer:
        writer.append([0], part)
        writer.finish()
        for late in (writer.finish, lambda: writer.append([1], part)):
            with pytest.raises(ValueError, match="finished"):
                late()
    assert store.present(0, 0).tolist() == [True, False, False, False, False]


def test_writing_a_block_again_replaces_it(column):
    store, _ = column
    store.read(0, [0], NAMES)
    other = make_data(LAYOUT, seed=1)
    records = write_block(store, 0, 0, other, absent=())
    assert same(store.read(0, [0, 1], NAMES)["l3/values"], other["l3/values"][0, :2])
    assert store.check(0, 0, records, deep=True) == ()
    assert same(store.read(1, [0], NAMES)["l3/values"], DATA["l3/values"][1, :1])


def test_a_full_disk_is_one_line_and_leaves_nothing(kind, tmp_path, monkeypatch):
    store = make_store(kind, tmp_path)
    part = {name: values[0, :1] for name, values in DATA.items()}

    def full(*_):
        raise OSError(28, "No space left on device")

    writer = store.open_block(0, 0)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StorageError, match="no space left"):
        writer.append([0], part)
    with pytest.raises(ValueError, match="failed before"):
        writer.finish()
    assert tree(tmp_path) == []


def test_a_failing_fsync_publishes_no_block(kind, tmp_path, monkeypatch):
    store = make_store(kind, tmp_path)
    writer = store.open_block(0, 0)
    writer.append([0], {name: values[0, :1] for name, values in DATA.items()})

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="cannot be reached"):
        writer.finish()
    assert tree(tmp_path) == []


def test_reading_writes_nothing_and_works_on_a_read_only_folder(column):
    store, records = column
    folder = store.location.local_path()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    store.read(0, PRESENT, NAMES)
    store.check(0, 0, records[0, 0], deep=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for path in before:
        path.chmod(0o755 if path.is_dir() else 0o644)


# Damage


def flipped(path, position, bit=0x10):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(bytes(data))


def read_all_singly(store, view, block):
    """Every sample and array that can be read still reads as written; returns the (sample, name) that cannot."""
    refused = set()
    for sample in store.layout.block_samples(block):
        for name in NAMES:
            try:
                read = store.read(view, [sample], [name])[name][0]
            except DamageError:
                refused.add((sample, name))
                continue
            fill = np.full(LAYOUT[name].shape, LAYOUT[name].fill, LAYOUT[name].dtype)
            assert same(read, fill if sample in ABSENT else DATA[name][view, sample])
    return refused


@pytest.mark.parametrize("part", range(12))
def test_a_flipped_byte_anywhere_is_found_and_never_read_as_something_else(column, part):
    store, records = column
    rng = np.random.default_rng(part)
    for record in records[0, 0]:
        path = store.location.local_path(record.path)
        for position in rng.integers(0, record.bytes, 3).tolist():
            flipped(path, position)
            store.forget()
            found = store.check(0, 0, records[0, 0], deep=True)
            assert any(damage.path == record.path for damage in found), (record.path, position)
            read_all_singly(store, 0, 0)
            flipped(path, position)
    store.forget()
    assert store.check(0, 0, records[0, 0], deep=True) == ()


TINY = ColumnLayout((ArrayLayout("l3/values", "int8", (9,), 0), ArrayLayout("l3/scales", "float16", (), NAN)), 1, 1)


@pytest.mark.slow
def test_every_single_byte_of_every_file_is_guarded(kind, tmp_path):
    store = make_store(kind, tmp_path, TINY)
    (records,) = write_column(store, make_data(TINY, 1), views=1, absent=()).values()
    for record in records:
        path = store.location.local_path(record.path)
        for position in range(record.bytes):
            flipped(path, position, 1 << position % 8)
            assert store.check(0, 0, records, deep=True), (record.path, position)
            flipped(path, position, 1 << position % 8)
    assert store.check(0, 0, records, deep=True) == ()


def values_of(store, name, sample, view=0):
    """Path and offset of a sample's values."""
    file, row = store.data_file(LAYOUT[name])
    block, position = divmod(sample, LAYOUT.block)
    (opened,) = store.load([(store.location.url, file, view, block)])
    offset = int(opened.places[row, position, 0])
    opened.close()
    return store.location.local_path(store.data_path(file, view, block)), offset


@pytest.mark.parametrize("name", NAMES)
def test_damage_in_payload_or_scale_names_file_and_sample_and_spares_the_others(column, name):
    store, records = column
    path, offset = values_of(store, name, 3)
    flipped(path, offset)
    for _ in range(2):
        with pytest.raises(DamageError, match=rf"{path.name}.*sample 3 of view 0.*{name}.*cache repair"):
            store.read(0, PRESENT, NAMES)
    assert read_all_singly(store, 0, 0) == {(3, name)}
    found = store.check(0, 0, records[0, 0], deep=True)
    assert 3 in {damage.sample for damage in found}
    assert {damage.sample for damage in found} <= {3, None}
    assert store.check(0, 0, records[0, 0]) == (), "a shallow check reads no values"


def test_a_lost_file_is_named_and_never_read_as_zeros(column):
    store, records = column
    for record in records[0, 1]:
        path = store.location.local_path(record.path)
        kept = path.read_bytes()
        path.unlink()
        store.forget()
        assert [damage.path for damage in store.check(0, 1, records[0, 1])] == [record.path]
        assert [damage.path for damage in store.check(0, 1, records[0, 1], deep=True)] == [record.path]
        with pytest.raises(DamageError, match=r"missing.*cache repair"):
            store.read(0, [6], NAMES)
        path.write_bytes(kept)


@pytest.mark.parametrize("cut", [1, 4, 5, 30, "half", "all"])
def test_a_cut_or_lengthened_file_is_found_and_never_read_as_zeros(column, cut):
    store, records = column
    for record in records[0, 1]:
        path = store.location.local_path(record.path)
        kept = path.read_bytes()
        length = {"half": len(kept) // 2, "all": 0}.get(cut) if isinstance(cut, str) else len(kept) - cut
        for content in (kept[:length], kept + b"\0" * (len(kept) - length)):
            path.write_bytes(content)
            store.forget()
            assert [damage.path for damage in store.check(0, 1, records[0, 1])] == [record.path]
            with pytest.raises(DamageError):
                store.read(0, [5, 6, 8, 9], NAMES)
        path.write_bytes(kept)


def test_files_swapped_between_blocks_are_found_by_a_deep_check(kind, tmp_path):
    store = make_store(kind, tmp_path)
    records = write_column(store, absent=())
    for first, second in zip(store.files(0, 0), store.files(0, 1), strict=True):
        a, b = store.location.local_path(first), store.location.local_path(second)
        kept = a.read_bytes(), b.read_bytes()
        a.write_bytes(kept[1])
        b.write_bytes(kept[0])
        store.forget()
        assert store.check(0, 0, records[0, 0], deep=True), first
        a.write_bytes(kept[0])
        b.write_bytes(kept[1])


def test_records_of_other_files_are_damage(column):
    store, records = column
    found = store.check(0, 0, [*records[0, 0][1:], FileRecord("other", 1, "crc32c:00000000")])
    assert {damage.path for damage in found} == {records[0, 0][0].path, "other"}


def test_a_damaged_file_that_was_mended_reads_again_without_a_restart(column):
    store, _ = column
    path, offset = values_of(store, "l3/values", 3)
    flipped(path, offset)
    with pytest.raises(DamageError):
        store.read(0, [3], NAMES)
    write_block(store, 0, 0, DATA)
    assert same(store.read(0, [3], NAMES)["l3/values"], DATA["l3/values"][0, [3]])


# Processes and threads


def read_in_child(store, queue):
    read = store.read(0, PRESENT, NAMES)
    queue.put(all(same(read[name], DATA[name][0, PRESENT]) for name in NAMES))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_children_read_with_descriptors_of_their_own(column, method):
    store, _ = column
    store.read(0, PRESENT, NAMES)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=100)
    child.join()
    assert child.exitcode == 0


def test_a_fork_while_another_thread_reads_does_not_hang(column):
    store, _ = column
    done = threading.Event()

    def keep_reading():
        while not done.is_set():
            store.read(0, PRESENT, NAMES)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            queue = context.Queue()
            child = context.Process(target=read_in_child, args=(store, queue))
            child.start()
            assert queue.get(timeout=60)
            child.join()
    finally:
        done.set()
        thread.join()


def test_a_pickled_store_holds_no_file_and_reads_the_same(column):
    store, _ = column
    store.read(0, PRESENT, NAMES)
    plain = store if isinstance(store, ZarrStore) else TarStore(store.location, LAYOUT)
    again = pickle.loads(pickle.dumps(plain))
    assert same(again.read(1, [0], NAMES)["l3/values"], DATA["l3/values"][1, :1])


def test_threads_share_a_few_descriptors(column, monkeypatch):
    store, _ = column
    few = open_files.OpenFiles(capacity=5)
    monkeypatch.setattr("pipeline.cache.stores.indexed.open_files", lambda: few)
    failures = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            samples, view = rng.choice(PRESENT, 6), int(rng.integers(VIEWS))
            read = store.read(view, samples, NAMES)
            if not all(same(read[name], DATA[name][view, samples]) for name in NAMES):
                failures.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(few) <= 5 + 4 * 5  # those in use may stand above the capacity
    store.read(0, [0], NAMES[:1])
    few.drop(lambda file: file.key[0] == store.location.url)
    assert len(few) == 0


# Behind a URL


@pytest.fixture
def remote(kind, tmp_path):
    location = open_location(f"memory://{tmp_path.name}-{kind}")
    store = make_store(kind, location, staging=Staging(tmp_path / "staged"))
    yield store, write_column(store)
    location.delete_tree("")


def test_a_remote_column_is_written_checked_and_read_through_staged_blocks(remote, tmp_path):
    store, records = remote
    for view in range(VIEWS):
        read = store.read(view, PRESENT, NAMES)
        assert all(same(read[name], DATA[name][view, PRESENT]) for name in NAMES)
    for (view, block), files in records.items():
        assert store.check(view, block, files, deep=True) == ()
    assert len(tree(tmp_path / "staged")) == sum(map(len, records.values()))
    assert tree(tmp_path) == [f"staged/{name}" for name in tree(tmp_path / "staged")], "nothing lies elsewhere"


def test_a_lost_remote_file_is_damage(remote):
    store, records = remote
    store.location.delete(records[0, 0][-1].path)
    assert [damage.path for damage in store.check(0, 0, records[0, 0])] == [records[0, 0][-1].path]
    with pytest.raises(DamageError, match=r"memory://.*not there.*cache repair"):
        store.read(0, [0], NAMES)


def test_staged_copies_are_bounded_and_old_ones_go_first(remote, tmp_path):
    store, records = remote
    block_bytes = sum(file.bytes for file in records[0, 0])
    small = replace(Staging(), folder=tmp_path / "small", limit=2 * block_bytes)
    store = make_store("zarr" if isinstance(store, ZarrStore) else "webdataset", store.location, staging=small)
    for sample in [0, 5, 10, 0, 12, 9]:
        read = store.read(0, [sample], NAMES)
        assert same(read["l9/values"], DATA["l9/values"][0, [sample]])
        assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= 2 * block_bytes
    store.forget()


def test_no_line_of_an_error_is_more_than_one(column):
    store, records = column
    store.location.delete(records[0, 0][0].path)
    store.forget()
    with pytest.raises(DamageError) as caught:
        store.read(0, [0], NAMES)
    assert "\n" not in str(caught.value)
    assert errors.explain(OSError(5, "a\nb"), "here").args[0].count("\n") == 0
