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
    CUT,
    DONE,
    FAILED,
    WRONG_SUM,
    advise_file,
    join_thread,
    last_error,
    longs,
    open_file,
    seek_file,
    start_thread,
    take_next,
)
from pipeline.cache.native_crc import load8
from pipeline.cache.native_jit import Number, callback, compiled, inner
from pipeline.cache.native_ranges import TRAILER, UNCHECKED, check_sum, read_fully, read_piece

Longs = NDArray[np.int64]

_READ, _OPEN = 0, 1
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_END = os.SEEK_END


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
            status[i] = read_fully(file, files[i, 2], tail, files[i, 5] - tail)
            if status[i] == DONE:
                stored = np.int64(0)
                for byte in range(4):
                    stored |= np.int64(load8(files[i, 2] + tail - 4 + byte)) << (8 * byte)
                status[i] = check_sum(files[i, 2], tail - 4, TRAILER, stored)


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
            read_piece(ranges, status, carray(longs(state[6]), rows), bounds[piece], bounds[piece + 1])
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
