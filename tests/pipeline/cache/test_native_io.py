"""Checksums, positioned reads and appends without the GIL."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache import native_crc, native_jit
from pipeline.cache.memory import RECYCLER, Recycler, address, aligned
from pipeline.cache.native_calls import CUT, FAILED, WRONG_SUM
from pipeline.cache.native_crc import crc32c
from pipeline.cache.native_read import TRAILER, UNCHECKED, open_tails, read_ranges, reason
from pipeline.cache.native_write import append

LENGTHS = [0, 1, 3, 7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 1536, 6143, 6144, 6145, 6151, 24_000, 100_003]


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("start", [0, 1, 5])
def test_checksums_are_those_of_google_crc32c_at_any_length_and_alignment(length, start):
    data = random_bytes(length + start)[start:]
    assert crc32c(data) == google_crc32c.value(data.tobytes())
    assert crc32c(data.tobytes()) == crc32c(data)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_checksum_goes_on_where_another_ended(first, second):
    assert crc32c(second, crc32c(first)) == google_crc32c.value(first + second)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_processors_without_the_instruction_get_the_same_steps(state, word):
    state_word, data = np.uint64(state), np.uint64(word)
    expected = google_crc32c.extend(state ^ 0xFFFFFFFF, word.to_bytes(8, "little")) ^ 0xFFFFFFFF
    assert int(native_crc.step_by_tables(state_word, data)) == expected


@pytest.mark.parametrize("length", [6144, 24_000, 100_003])
def test_processors_without_wide_multiplication_get_the_same_sums_from_three_lanes(length):
    data, state = random_bytes(length), np.uint64(0x1234ABCD)
    lane = length // 24 * 8
    expected = google_crc32c.extend(0x1234ABCD ^ 0xFFFFFFFF, data[: 3 * lane].tobytes()) ^ 0xFFFFFFFF
    assert int(native_crc._three_lanes(state, address(data), lane)) == expected


def test_only_contiguous_bytes_have_a_checksum():
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(random_bytes(100)[::2])


@pytest.fixture
def written(tmp_path):
    """A file of chunks of several lengths with their checksums behind; yields descriptor, chunks, offsets."""
    chunks = [random_bytes(length, seed) for seed, length in enumerate([5000, 1, 300_000, 64, 700_000, 0, 4096, 12])]
    offsets, position = [], 7
    with (tmp_path / "chunks").open("wb") as file:
        file.write(b"\0" * 7)
        for chunk in chunks:
            offsets.append(position)
            position += file.write(chunk.tobytes() + crc32c(chunk).to_bytes(4, "little"))
    descriptor = os.open(tmp_path / "chunks", os.O_RDONLY)
    yield descriptor, chunks, offsets
    os.close(descriptor)


def table_for(written, order, expected=TRAILER):
    descriptor, chunks, offsets = written
    outs = [np.full(len(chunks[i]), 99, np.uint8) for i in order]
    rows = [
        (descriptor, address(out), offsets[i], len(out), crc32c(chunks[i]) if expected is None else expected)
        for i, out in zip(order, outs, strict=True)
    ]
    return np.array(rows, np.int64).reshape(-1, 5), outs


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("expected", [TRAILER, UNCHECKED, None])
@pytest.mark.parametrize("order", [list(range(8)), [7, 0, 0, 4, 3, 2, 6], [4], []])
def test_ranges_are_read_in_any_order_by_any_number_of_threads(written, order, expected, threads):
    table, outs = table_for(written, order, expected)
    assert not read_ranges(table, threads).any()
    for i, out in zip(order, outs, strict=True):
        np.testing.assert_array_equal(out, written[1][i])


def test_a_wrong_checksum_and_a_cut_file_strike_only_their_own_ranges(written):
    order = list(range(8))
    table, outs = table_for(written, order, None)
    table[2, 4] ^= 1
    table[6, 2] = 10**9
    status = read_ranges(table, 2).tolist()
    assert status == [0, 0, WRONG_SUM, 0, 0, 0, CUT, 0]
    np.testing.assert_array_equal(outs[4], written[1][4])
    assert "checksum" in reason(WRONG_SUM)
    assert "cut" in reason(CUT)


def test_a_descriptor_that_cannot_be_read_is_an_error_with_its_number(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    out = np.empty(8, np.uint8)
    try:
        status = read_ranges(np.array([[folder, address(out), 0, 8, UNCHECKED]]))
    finally:
        os.close(folder)
    assert status.tolist() == [FAILED + errno.EISDIR]
    assert "directory" in reason(int(status[0]))


def test_files_are_opened_with_their_tails_read_and_checked(tmp_path):
    body, tail = random_bytes(1000), random_bytes(60)
    sealed = tail.tobytes() + crc32c(tail).to_bytes(4, "little")
    (tmp_path / "good").write_bytes(body.tobytes() + sealed)
    (tmp_path / "bad").write_bytes(body.tobytes() + sealed[:-1] + bytes([sealed[-1] ^ 1]))
    (tmp_path / "short").write_bytes(sealed[1:])
    names = ["good", "bad", "short", "absent", "good"]
    tails = [np.zeros(64, np.uint8) for _ in names[:4]] + [np.zeros(0, np.uint8)]
    opened = open_tails([str(tmp_path / name) for name in names], tails, [-1] * 5, threads=3)
    opened.close()
    assert opened.status == [0, WRONG_SUM, CUT, FAILED + errno.ENOENT, 0]
    assert opened.sizes[0] == opened.sizes[4] == 1064
    assert tails[0].tobytes() == sealed
    assert [descriptor >= 0 for descriptor in opened.descriptors] == [True, True, True, False, True]


def test_pieces_are_appended_with_their_checksums(tmp_path):
    parts = [random_bytes(length, seed) for seed, length in enumerate([10, 500_000, 3000, 0, 900_000, 63, 64] * 300)]
    parts = parts[:40] + [part for part in parts[40:] if len(part) < 4000]
    sums = np.zeros(2 * len(parts), np.uint64)
    pieces = np.empty((len(parts), 2, 2), np.int64)
    for i, part in enumerate(parts):
        pieces[i] = [(address(part), len(part)), (address(sums[2 * i :]), 4)]
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before")
        file.flush()
        count = append(file.fileno(), 6, pieces.reshape(-1, 2), sums)
    expected = b"before" + b"".join(part.tobytes() + crc32c(part).to_bytes(4, "little") for part in parts)
    assert (tmp_path / "out").read_bytes() == expected
    assert count == len(expected) - 6
    assert sums[::2].tolist() == [crc32c(part) for part in parts]


def test_a_full_disk_is_an_oserror_with_its_number():
    full = os.open("/dev/full", os.O_WRONLY)
    data = random_bytes(100)
    pieces = np.array([[address(data), 100]])
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            append(full, 0, pieces, np.zeros(1, np.uint64))
    finally:
        os.close(full)
    assert caught.value.errno == errno.ENOSPC


def test_compiled_code_is_taken_from_disk_by_the_next_process():
    program = "from pipeline.cache import native_crc as m; print(sum(m.extend.stats.cache_hits.values()))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.split() == ["1"]


def test_a_change_of_any_compiled_file_makes_all_of_them_anew():
    sources = {path.name for path in Path(native_jit.__file__).parent.glob("native_*.py")}
    assert {name for name, _, _ in native_jit._STAMP} == sources
    assert native_crc.extend._cache._cache_file._source_stamp == native_jit._STAMP


def test_memory_is_used_again_only_when_nobody_holds_it():
    RECYCLER.reset()
    first = aligned((2, 1 << 20), np.dtype("uint8"))
    place = address(first)
    assert place % 4096 == 0
    part = first[1:, 5:]
    del first
    second = aligned((2, 1 << 20), np.dtype("uint8"))
    assert address(second) != place, "a view still holds the first"
    del part
    third = aligned((1 << 19,), np.dtype("float32"))
    assert address(third) == place
    assert address(second) != place


def test_let_go_memory_is_bounded():
    recycler = Recycler(limit=3000)
    for _ in range(5):
        recycler.keep(np.empty(1000, np.uint8))
    assert recycler.bytes == 3000
    recycler.take(1000)
    assert recycler.bytes == 2000


def test_threads_read_at_the_same_time(written):
    failures = []

    def read(seed):
        order = np.random.default_rng(seed).permutation(8).tolist()
        for _ in range(20):
            table, outs = table_for(written, order)
            status = read_ranges(table, 2)
            same = all((out == written[1][i]).all() for i, out in zip(order, outs, strict=True))
            if status.any() or not same:
                failures.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
