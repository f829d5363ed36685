"""Appending many pieces of memory to a file, summed as they are written, in one call that never takes the GIL."""

import os

import numpy as np
from numba import types
from numpy.typing import NDArray

from pipeline.cache.native_calls import DONE, EINTR, FAILED, last_error, start_flush, write_at, write_vectors
from pipeline.cache.native_crc import extend
from pipeline.cache.native_jit import Number, compiled, inner

_GROUP_BYTES = 1 << 19  # summed, then written while still in the processor's cache
_GROUP_VECTORS = 1000  # IOV_MAX is 1,024
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


@inner
def _write_fully(file: Number, address: Number, length: Number, offset: Number) -> Number:
    while length > 0:
        put = write_at(file, address, length, offset)
        if put < 0:
            error = last_error()
            if error != EINTR:
                return FAILED + error
            continue
        address += put
        offset += put
        length -= put
    return DONE


@inner
def _write_group(file: Number, pieces: Number, first: Number, behind: Number, total: Number, offset: Number) -> Number:
    count = np.int32(behind - first)
    if write_vectors(file, pieces[first:].ctypes.data, count, offset) == total:
        return DONE
    for i in range(first, behind):
        status = _write_fully(file, pieces[i, 0], pieces[i, 1], offset)
        if status != DONE:
            return status
        offset += pieces[i, 1]
    return DONE


@compiled(types.int64(types.int32, types.int64, types.int64[:, ::1], types.uint64[::1]))
def _append(file: Number, offset: Number, pieces: Number, sums: Number) -> Number:
    first, total, i = 0, 0, 0
    while i < len(pieces):
        sums[i] = extend(np.uint64(0), pieces[i, 0], pieces[i, 1])
        total += pieces[i, 1]
        i += 1
        if i == len(pieces) or i - first == _GROUP_VECTORS or total + pieces[i, 1] > _GROUP_BYTES:
            status = _write_group(file, pieces, first, i, total, offset)
            if status != DONE:
                return status
            offset += total
            first, total = i, 0
    return DONE


@compiled(types.int64(types.int32, types.int64, types.int64))
def begin_flush(file: Number, offset: Number, length: Number) -> Number:
    """Have the system begin to write a part of a file to disk; waits only while the disk's queue is full."""
    return start_flush(file, offset, length, np.int32(_START_WRITING))


def append(descriptor: int, offset: int, pieces: NDArray[np.int64], sums: NDArray[np.uint64]) -> int:
    """Write pieces of memory, rows of (address, bytes), one after the other from `offset`; returns their bytes.

    `sums[i]` is filled with the CRC32C of piece i before the next one is looked at, so the next may be the four
    bytes at `sums[i]`. OSError where the file system refuses; then part of the pieces may be written.
    """
    status = int(_append(descriptor, offset, pieces, sums))
    if status:
        raise OSError(status - FAILED, os.strerror(status - FAILED))
    return int(pieces[:, 1].sum())
