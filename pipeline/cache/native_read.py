"""Reading many byte ranges of many files, checked, in one call that never takes the GIL.

Threads are started and joined inside the call: Python's own would wait for the GIL at their start and end, five
milliseconds a time beside a busy thread. They live for one call, so none is there to be lost in a fork.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import carray, types
from numpy.typing import NDArray

from pipeline.cache.memory import address
from pipeline.cache.native_calls import (
    ABSENT,
    CUT,
    DONE,
    EINTR,
    FAILED,
    WRONG_SUM,
    advise_file,
    join_thread,
    last_error,
    longs,
    open_file,
    read_at,
    read_vectors,
    read_vectors_at_hand,
    seek_file,
    start_thread,
    take_next,
)
from pipeline.cache.native_crc import extend, load8
from pipeline.cache.native_jit import Number, callback, compiled, inner

Longs = NDArray[np.int64]

# What a range's checksum is compared with, where that is not a number given: nothing, or the four bytes behind it.
UNCHECKED, TRAILER = -1, -2

_GROUP_BYTES = 1 << 19  # ranges that lie together are read by one system call, and summed while in the cache
_GROUP_VECTORS = 1000  # IOV_MAX is 1,024
_GAP = 4096  # bytes between ranges that are cheaper to read than to skip
_AHEAD = 16 << 20  # bytes that the disk is asked for before they are waited for
_READ, _OPEN = 0, 1
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_WILL_NEED = os.POSIX_FADV_WILLNEED
_NOT_WAITING = os.RWF_NOWAIT
_END = os.SEEK_END


@inner
def _read_fully(file: Number, address: Number, length: Number, offset: Number) -> Number:
    while length > 0:
        got = read_at(file, address, length, offset)
        if got == 0:
            return CUT
        if got < 0:
            error = last_error()
            if error != EINTR:
                return FAILED + error
            continue
        address += got
        offset += got
        length -= got
    return DONE


@inner
def _check(address: Number, length: Number, expected: Number, trailer: Number) -> Number:
    if expected == UNCHECKED:
        return DONE
    wanted = trailer & 0xFFFFFFFF if expected == TRAILER else expected
    return DONE if np.int64(extend(np.uint64(0), address, length)) == wanted else WRONG_SUM


@inner
def _gather(ranges: Number, first: Number, last: Number, vectors: Number, trailers: Number, trash: Number) -> Number:
    """Fill `vectors` with ranges from `first` on that one call can read; returns their number of vectors."""
    count, total, position, i = 0, 0, ranges[first, 2], first
    while i < last and count + 3 <= _GROUP_VECTORS:
        gap = ranges[i, 2] - position
        together = ranges[i, 0] == ranges[first, 0] and 0 <= gap <= _GAP
        if i > first and not (together and total + gap + ranges[i, 3] <= _GROUP_BYTES):
            break
        if gap > 0:
            vectors[count, 0], vectors[count, 1] = trash, gap
            count += 1
        vectors[count, 0], vectors[count, 1] = ranges[i, 1], ranges[i, 3]
        count += 1
        position = ranges[i, 2] + ranges[i, 3]
        if ranges[i, 4] == TRAILER:
            vectors[count, 0], vectors[count, 1] = trailers.ctypes.data + 8 * i, 4
            count += 1
            position += 4
        total = position - ranges[first, 2]
        i += 1
    vectors[_GROUP_VECTORS, 0], vectors[_GROUP_VECTORS, 1] = i, total
    return count


@inner
def _ask_ahead(ranges: Number, ahead: Number, last: Number, credit: Number) -> Number:
    """Have the system fetch ranges from `ahead` on, up to `credit` bytes; returns both as they are then."""
    while ahead < last and credit > 0:
        if ranges[ahead, 2] >= 0:
            advise_file(np.int32(ranges[ahead, 0]), ranges[ahead, 2], ranges[ahead, 3], np.int32(_WILL_NEED))
            credit -= ranges[ahead, 3]
        ahead += 1
    return ahead, credit


@inner
def _read_ranges(ranges: Number, status: Number, trailers: Number, first: Number, last: Number) -> None:
    vectors = np.empty((_GROUP_VECTORS + 1, 2), np.int64)
    trash = np.empty(_GAP, np.uint8)
    # From the first range on that is not in memory, the disk is asked for many at a time.
    waits, ahead, credit = False, first, _AHEAD
    while first < last:
        if ranges[first, 2] < 0:
            status[first] = ABSENT
            first += 1
            continue
        count = _gather(ranges, first, last, vectors, trailers, trash.ctypes.data)
        behind, total = vectors[_GROUP_VECTORS, 0], vectors[_GROUP_VECTORS, 1]
        file, offset = np.int32(ranges[first, 0]), ranges[first, 2]
        whole = False
        if not waits:
            at_hand = read_vectors_at_hand(file, vectors.ctypes.data, np.int32(count), offset, np.int32(_NOT_WAITING))
            whole = at_hand == total
            waits, ahead = not whole, first
        if waits:
            ahead, credit = _ask_ahead(ranges, ahead, last, credit)
            whole = read_vectors(file, vectors.ctypes.data, np.int32(count), offset) == total
            credit += total
        for i in range(first, behind):
            place, offset, length, expected = ranges[i, 1], ranges[i, 2], ranges[i, 3], ranges[i, 4]
            if not whole:
                status[i] = _read_fully(file, place, length, offset)
                if status[i] == DONE and expected == TRAILER:
                    status[i] = _read_fully(file, trailers.ctypes.data + 8 * i, 4, offset + length)
            if status[i] == DONE:
                status[i] = _check(place, length, expected, trailers[i])
        first = behind


@inner
def _open_files(files: Number, status: Number, first: Number, last: Number) -> None:
    for i in range(first, last):
        file = open_file(files[i, 0], np.int32(_FLAGS))
        if file < 0:
            status[i] = FAILED + last_error()
            continue
        tail = files[i, 1]
        files[i, 4] = file
        files[i, 5] = seek_file(file, 0, np.int32(_END))
        if files[i, 3] >= 0:
            advise_file(file, 0, 0, np.int32(files[i, 3]))
        if files[i, 5] < tail:
            status[i] = CUT
        elif tail > 0:
            status[i] = _read_fully(file, files[i, 2], tail, files[i, 5] - tail)
            if status[i] == DONE:
                stored = np.int64(0)
                for byte in range(4):
                    stored |= np.int64(load8(files[i, 2] + tail - 4 + byte)) << (8 * byte)
                status[i] = _check(files[i, 2], tail - 4, TRAILER, stored)


@inner
def _work(address: Number) -> None:
    """Take pieces until none is left. `address`: next piece, pieces, kind, then the arrays as `_run` lays them."""
    state = carray(longs(address), 8)
    bounds = carray(longs(state[3]), state[1] + 1)
    rows = state[7]
    status = carray(longs(state[5]), rows)
    while True:
        piece = take_next(address)
        if piece >= state[1]:
            return
        if state[2] == _READ:
            ranges = carray(longs(state[4]), (rows, 5))
            _read_ranges(ranges, status, carray(longs(state[6]), rows), bounds[piece], bounds[piece + 1])
        else:
            _open_files(carray(longs(state[4]), (rows, 6)), status, bounds[piece], bounds[piece + 1])


def _entry(address: Number) -> Number:
    _work(address)
    return 0


_THREAD = callback(_entry)


@compiled(types.void(types.int64, types.int64, types.int64))
def _start(address: Number, entry: Number, threads: Number) -> None:
    identities = np.zeros(threads, np.int64)
    started = 0
    while started < threads - 1 and start_thread(identities.ctypes.data + 8 * started, 0, entry, address) == 0:
        started += 1
    _work(address)
    for i in range(started):
        join_thread(identities[i], 0)


def _run(kind: int, table: Longs, bounds: Longs, threads: int) -> Longs:
    """Status of each row of `table` after all threads have worked through the pieces between `bounds`."""
    status = np.zeros(len(table), np.int64)
    trailers = np.zeros(len(table), np.int64)
    arrays = (bounds, table, status, trailers)
    state = np.array([0, len(bounds) - 1, kind, *map(address, arrays), len(table)], np.int64)
    _start(address(state), _THREAD, min(threads, len(bounds) - 1))
    return status


def read_ranges(ranges: Longs, threads: int = 1) -> Longs:
    """Read each row (descriptor, address, offset, length, expected) of `ranges`; returns a status for each.

    `expected` is the CRC32C, TRAILER where it stands in the four bytes behind the range, or UNCHECKED. Rows of one
    file in ascending order are read together. The addresses must stay valid and belong to nobody else. Status 0 is
    done, `ABSENT` a row whose offset is negative, `CUT` a file that ends early, `WRONG_SUM` another checksum, and from
    `FAILED` on 16 + errno.
    """
    if threads <= 1 or len(ranges) < 2:
        return _run(_READ, ranges, np.array([0, len(ranges)], np.int64), 1)
    behind = np.cumsum(ranges[:, 3])
    cuts = np.searchsorted(behind, np.linspace(0, behind[-1], 8 * threads + 1)[1:-1])
    return _run(_READ, ranges, np.unique(np.concatenate([[0], cuts, [len(ranges)]])), threads)


@dataclass(frozen=True)
class Opened:
    """Descriptors (-1 where opening failed), sizes, and a status for each file, as of `read_ranges`."""

    descriptors: list[int]
    sizes: list[int]
    status: list[int]

    def split(self, count: int) -> "tuple[Opened, Opened]":
        """The first `count` files, and the others."""
        return (
            Opened(self.descriptors[:count], self.sizes[:count], self.status[:count]),
            Opened(self.descriptors[count:], self.sizes[count:], self.status[count:]),
        )

    def close(self) -> None:
        """Close all that are open."""
        for descriptor in self.descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def open_tails(
    paths: Sequence[str], tails: Sequence[NDArray[np.uint8]], advice: Sequence[int], threads: int = 1
) -> Opened:
    """Open files for reading, fill each of `tails` with the end of its file, and check it.

    A tail ends in the CRC32C of what stands before in it; an empty one is not read. `advice` is posix_fadvise's,
    -1 for none.
    """
    names = [os.fsencode(path) + b"\0" for path in paths]
    packed = np.frombuffer(b"".join(names), np.uint8)
    table = np.zeros((len(paths), 6), np.int64)
    table[:, 0] = address(packed) + np.cumsum([0, *map(len, names[:-1])])
    table[:, 1] = [len(tail) for tail in tails]
    table[:, 2] = [address(tail) for tail in tails]
    table[:, 3] = advice
    table[:, 4] = -1
    status = _run(_OPEN, table, np.arange(len(paths) + 1), threads)
    return Opened(table[:, 4].tolist(), table[:, 5].tolist(), status.tolist())


def reason(status: int) -> str:
    """What a status other than 0 means."""
    if status == CUT:
        return "the file ends too early: it was cut"
    if status == WRONG_SUM:
        return "its checksum does not match"
    return os.strerror(int(status) - FAILED)


__all__ = ["TRAILER", "UNCHECKED", "Opened", "open_tails", "read_ranges", "reason"]
