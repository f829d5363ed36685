import multiprocessing
import os
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.images.access import ImageAccess
from pipeline.images.build import build_index
from pipeline.images.source import ShardError
from pipeline.storage import StorageError


@pytest.fixture
def index(shards):
    return build_index(str(shards))


def open_descriptors(shards):
    """Those of the shards: other threads of the process open and close files of their own."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(descriptor.readlink()))
    return sum(path.startswith(str(shards.resolve())) for path in found)


def test_every_image_is_read_at_random_as_it_was_written(index, image):
    access = ImageAccess(index, verify=True)
    for sample in random.Random(0).choices(range(12), k=60):
        assert access.read(sample) == image(sample)
    assert access.read_many([7, 3, 7]) == [image(7), image(3), image(7)]
    assert len(access) == 12


def test_numbers_outside_are_refused(index):
    for sample in (12, -1):
        with pytest.raises(IndexError, match="of 12"):
            ImageAccess(index).read(sample)


def test_subsets_read_their_own_images(index, image):
    access = ImageAccess(index.subset([9, 2]), verify=True)
    assert access.read_many([0, 1]) == [image(9), image(2)]


def test_an_empty_image_reads_as_nothing(tmp_path, tar):
    (tmp_path / "a.tar").write_bytes(tar([("a.jpg", b""), ("b.jpg", b"1")]))
    assert ImageAccess(build_index(str(tmp_path)), verify=True).read_many([0, 1]) == [b"", b"1"]


def test_folders_and_class_folders_are_read_too(tmp_path, image):
    for number, name in enumerate(["n01/a.b.JPEG", "n02/a.jpg"]):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(image(number))
    access = ImageAccess(build_index(str(tmp_path)), verify=True)
    assert access.read_many([1, 0]) == [image(1), image(0)]
    (tmp_path / "n02" / "a.jpg").write_bytes(b"short")
    with pytest.raises(ShardError, match=r"n02/a.jpg: n02/a: 5 of \d+ bytes are there; the data changed"):
        access.read(1)


def test_few_shards_stay_open_and_close_gives_all_back(index, image, shards):
    access = ImageAccess(index, open_files=2)
    for sample in range(12):
        assert access.read(sample) == image(sample)
        assert 1 <= open_descriptors(shards) <= 2
    access.close()
    assert not open_descriptors(shards)
    assert access.read(5) == image(5)


def test_threads_read_right_while_shards_are_closed_under_them(index, image):
    access = ImageAccess(index, verify=True, open_files=1)
    samples = random.Random(1).choices(range(12), k=3000)
    with ThreadPoolExecutor(8) as pool:
        for sample, data in zip(samples, pool.map(access.read, samples), strict=True):
            assert data == image(sample)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_bytes(index, image, method, tmp_path):
    index.save(tmp_path / "images.index")
    access = ImageAccess(type(index).open(tmp_path / "images.index"), verify=True)
    access.read(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(access.read, range(12)) == [image(sample) for sample in range(12)]


def test_a_child_forked_while_a_thread_holds_the_lock_reads_on(index, image):
    access = ImageAccess(index)
    access.read(0)
    holding, done = threading.Event(), threading.Event()

    def hold():
        with access._opened.lock:
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if access.read(11) == image(11) else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_no_descriptor_is_pickled(index, image):
    access = ImageAccess(index, verify=True, open_files=3)
    access.read(0)
    copy = pickle.loads(pickle.dumps(access))
    assert (copy.verify, copy.open_files, len(copy._opened.files)) == (True, 3, 0)
    assert copy.read(4) == image(4)


def test_a_flipped_bit_is_found_where_reading_verifies(index, shards):
    place = index.byte_range(6)
    data = bytearray((shards / place.file).read_bytes())
    data[place.offset + place.size // 2] ^= 16
    (shards / place.file).write_bytes(data)
    ImageAccess(index).read(6)
    with pytest.raises(ShardError, match=r"train-001.tar: s06: its SHA-256 is not the one indexed") as failure:
        ImageAccess(index, verify=True).read(6)
    assert "\n" not in str(failure.value)


def test_a_cut_or_lost_shard_is_named(index, shards):
    place = index.byte_range(6)
    data = (shards / place.file).read_bytes()
    (shards / place.file).write_bytes(data[: place.offset + 10])
    with pytest.raises(ShardError, match=rf"train-001.tar: s06: 10 of {place.size} bytes are there"):
        ImageAccess(index).read(6)
    (shards / place.file).unlink()
    with pytest.raises(StorageError, match=r"train-001.tar: not there"):
        ImageAccess(index).read(6)


def test_remote_images_are_read_by_ranges_and_neighbours_at_once(shards, image, monkeypatch):
    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe_file(f"/access/{path.name}", path.read_bytes())
    access = ImageAccess(build_index("memory://access"), verify=True)
    asked, whole = [], MemoryFileSystem.cat_file

    def counted(self, path, *args, **kwargs):
        asked.append(path)
        return whole(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert access.read(10) == image(10)
    assert len(asked) == 1
    wanted = [11, 0, 5, 3, 2, 0]
    assert access.read_many(wanted) == [image(sample) for sample in wanted]
    assert len(asked) == 1 + 3
    monkeypatch.setattr("pipeline.images.access._NEAR", 100)
    assert access.read_many([0, 1, 3]) == [image(0), image(1), image(3)]
    assert len(asked) > 1 + 3 + 1
