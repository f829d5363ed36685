"""The compiled part of reading byte ranges: neighbours by one system call, the disk asked ahead, every sum checked."""

import os

import numpy as np

from pipeline.cache.native_calls import (
    ABSENT,
    CUT,
    DONE,
    EINTR,
    FAILED,
    WRONG_SUM,
    advise_file,
    last_error,
    read_at,
    read_vectors,
    read_vectors_at_hand,
)
from pipeline.cache.native_crc import extend
from pipeline.cache.native_jit import Number, inner

# What a range's checksum is compared with, where that is not a number given: nothing, or the four bytes behind it.
UNCHECKED, TRAILER = -1, -2

_GROUP_BYTES = 1 << 19  # ranges that lie together are read by one system call, and summed while in the cache
_GROUP_VECTORS = 1000  # IOV_MAX is 1,024
_GAP = 4096  # bytes between ranges that are cheaper to read than to skip
_AHEAD = 16 << 20  # bytes that the disk is asked for before they are waited for
_WILL_NEED = os.POSIX_FADV_WILLNEED
_NOT_WAITING = os.RWF_NOWAIT


@inner
def read_fully(file: Number, address: Number, length: Number, offset: Number) -> Number:
    """Status of reading one range."""
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
def check_sum(address: Number, length: Number, expected: Number, trailer: Number) -> Number:
    """Status of memory whose CRC32C must be `expected`, or in the low half of `trailer` where that says so."""
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
def read_piece(ranges: Number, status: Number, trailers: Number, first: Number, last: Number) -> None:
    """Read rows `first` to `last` of `ranges`; `trailers` has a word for each row's stored checksum."""
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
                status[i] = read_fully(file, place, length, offset)
                if status[i] == DONE and expected == TRAILER:
                    status[i] = read_fully(file, trailers.ctypes.data + 8 * i, 4, offset + length)
            if status[i] == DONE:
                status[i] = check_sum(place, length, expected, trailers[i])
        first = behind
