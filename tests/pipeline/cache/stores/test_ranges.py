"""Byte ranges into memory: together where they lie together, checked, in order."""

import errno
import gc
import os
import threading

import google_crc32c
import numpy as np
import pytest

from pipeline.cache.stores import ranges as module
from pipeline.cache.stores.ranges import RangeError, Ranges, read_ranges, result_memory, rows_of


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    """A file of chunks of several lengths with their checksums behind; yields descriptor, chunks, offsets."""
    lengths = [5000, 1, 300_000, 64, 700_000, 0, 4096, 12]
    chunks = [random_bytes(length, seed) for seed, length in enumerate(lengths)]
    offsets, position = [], 7
    with (tmp_path / "chunks").open("wb") as file:
        file.write(b"\0" * 7)
        for chunk in chunks:
            offsets.append(position)
            position += file.write(chunk.tobytes() + google_crc32c.value(chunk).to_bytes(4, "little"))
    descriptor = os.open(tmp_path / "chunks", os.O_RDONLY)
    yield descriptor, chunks, offsets
    os.close(descriptor)


def ranges_for(written, order, *, known=False):
    descriptor, chunks, offsets = written
    memory = [np.full(len(chunks[i]), 99, np.uint8) for i in order]
    sums = [google_crc32c.value(chunks[i]) for i in order] if known else None
    return Ranges([descriptor] * len(order), [offsets[i] for i in order], memory, sums)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("order", [list(range(8)), [7, 0, 0, 4, 3, 2, 6], [0, 1, 3, 6, 7], [4], []])
def test_ranges_are_read_in_any_order_wherever_their_sums_are(written, order, known, verify, cold):
    if cold:
        os.fsync(written[0])
        os.posix_fadvise(written[0], 0, 0, os.POSIX_FADV_DONTNEED)
    wanted = ranges_for(written, order, known=known)
    read_ranges(wanted, verify=verify)
    for i, memory in zip(order, wanted.memory, strict=True):
        np.testing.assert_array_equal(memory, written[1][i])


def test_ranges_that_lie_together_are_read_by_one_call(written, monkeypatch):
    calls = []
    read = os.preadv

    def counted(descriptor, vectors, *rest):
        calls.append(len(vectors))
        return read(descriptor, vectors, *rest)

    monkeypatch.setattr(os, "preadv", counted)
    read_ranges(ranges_for(written, [0, 1, 2, 3]))
    assert calls == [8]


def test_a_system_that_gives_less_than_asked_is_asked_again(written, monkeypatch):
    read = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda descriptor, vectors, offset, *_: read(descriptor, [vectors[0][:997]], offset)
    )
    wanted = ranges_for(written, [0, 1, 3])
    read_ranges(wanted)
    for i, memory in zip([0, 1, 3], wanted.memory, strict=True):
        np.testing.assert_array_equal(memory, written[1][i])


def test_a_wrong_checksum_names_its_range_unless_it_is_not_looked_at(written):
    wanted = ranges_for(written, list(range(8)), known=True)
    wanted.sums[2] ^= 1
    with pytest.raises(RangeError, match="its checksum does not match") as caught:
        read_ranges(wanted)
    assert (caught.value.row, caught.value.refused) == (2, None)
    read_ranges(wanted, verify=False)


def test_a_cut_file_names_the_range_it_lacks(written):
    wanted = ranges_for(written, [0, 7])
    os.truncate(f"/proc/self/fd/{written[0]}", written[2][7] + 14)
    with pytest.raises(RangeError, match="cut") as caught:
        read_ranges(wanted)
    assert caught.value.row == 1


def test_a_descriptor_that_cannot_be_read_is_an_error_with_its_number(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(RangeError) as caught:
            read_ranges(Ranges([folder], [0], [np.empty(8, np.uint8)]))
    finally:
        os.close(folder)
    assert caught.value.refused.errno == errno.EISDIR


def test_threads_read_at_the_same_time(written):
    failures = []

    def read(seed):
        order = np.random.default_rng(seed).permutation(8).tolist()
        for _ in range(20):
            wanted = ranges_for(written, order)
            read_ranges(wanted)
            if not all((memory == written[1][i]).all() for i, memory in zip(order, wanted.memory, strict=True)):
                failures.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_rows_are_the_memory_of_the_samples():
    array = np.zeros((3, 2, 2), np.float16)
    rows_of(array)[1] = 255
    assert np.isnan(array[1]).all()
    assert not array[[0, 2]].any()
    assert rows_of(np.zeros(4, np.float32)).shape == (4, 4)


def test_memory_is_used_again_only_when_nobody_holds_it(monkeypatch):
    monkeypatch.setattr(module, "_let_go", {})
    gc.collect()
    first = result_memory((2, 1 << 20), "uint8")
    place = first.ctypes.data
    assert place % 4096 == 0
    part = first[1:, 5:]
    del first
    second = result_memory((2, 1 << 20), "uint8")
    assert second.ctypes.data != place, "a view still holds the first"
    del part
    third = result_memory((1 << 19,), "float32")
    assert third.ctypes.data == place
    assert second.ctypes.data != place


def test_let_go_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_let_go", {})
    monkeypatch.setattr(module, "_KEPT", 5 << 20)
    for size in range(1, 5):
        result_memory((size << 20,), "uint8")
    assert sum(len(block) for blocks in module._let_go.values() for block in blocks) <= 5 << 20
