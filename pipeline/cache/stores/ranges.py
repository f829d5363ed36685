"""How a sample's bytes are read: ranges of files into memory, neighbours by one system call, every checksum compared.

Plain system calls, one after the other. Beside a thread that keeps the GIL busy each of them waits its turn, so
training reads in processes of their own (`reader/process.py`).
"""

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from sak.errors import SakError

PAGE = 4096  # copies out of the page cache are fastest to whole pages
SUM_BYTES = 4
_GAP = 16 << 10  # bytes between ranges that are cheaper to read than a system call of its own
_RUN_BYTES = 1 << 19  # read by one system call, and summed while in the processor's cache
_RUN_VECTORS = 1000  # IOV_MAX is 1,024
_AHEAD = 16 << 20  # bytes that the disk is asked for before they are waited for
_KEPT_FROM, _KEPT = 1 << 20, 256 << 20  # bytes of results whose memory is kept for later ones, and of all that is kept

Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint32]


class RangeError(SakError):
    """Range `row` is not what was written, or the system `refused` to read it."""

    def __init__(self, row: int, problem: str, refused: OSError | None = None) -> None:
        super().__init__(problem)
        self.row, self.refused = row, refused


@dataclass(frozen=True)
class Ranges:
    """What to read: `memory[i]` is filled from `offsets[i]` on of the file `descriptors[i]`.

    `sums` are the CRC32Cs; None where each stands in the four bytes behind its range. Ranges of one file are best in
    ascending order: then those that lie together are read together.
    """

    descriptors: Sequence[int]
    offsets: Sequence[int]
    memory: Sequence[Bytes]
    sums: Sequence[int] | None = None


@dataclass(slots=True)
class _Run:
    """Ranges `first` to `last` of a file, from `offset` to `end`, and the memory that one call fills."""

    first: int
    last: int
    descriptor: int
    offset: int
    end: int
    vectors: list[Any] = field(default_factory=list)  # arrays

    @property
    def bytes(self) -> int:
        return self.end - self.offset


def rows_of(array: NDArray[Any]) -> Bytes:
    """(n, bytes of one): the same memory of a C-contiguous array of n samples."""
    return array.reshape(len(array), -1).view(np.uint8)


def read_ranges(ranges: Ranges, *, verify: bool = True) -> None:
    """Fill all memory; RangeError names a range that is not right."""
    behind = np.zeros(len(ranges.memory), "<u4")
    runs = _runs(ranges, behind)
    waits, ahead, credit = False, 0, _AHEAD
    for number, run in enumerate(runs):
        if waits or not _at_hand(run):
            # From the first run on that is not in memory, the disk is asked for many at a time.
            ahead = ahead if waits else number
            waits = True
            while ahead < len(runs) and credit > 0:
                _ask(runs[ahead])
                credit -= runs[ahead].bytes
                ahead += 1
            credit += run.bytes
            _read(run, ranges, behind)
        if verify:
            _check(run, ranges, behind)


def read_fully(descriptor: int, memory: Bytes, offset: int) -> bool:
    """Fill memory from a file; false where that ends too early."""
    while len(memory):
        got = os.preadv(descriptor, [memory.data], offset)
        if not got:
            return False
        memory, offset = memory[got:], offset + got
    return True


def _runs(ranges: Ranges, behind: Sums) -> list[_Run]:
    runs: list[_Run] = []
    trash = np.empty(_GAP, np.uint8)
    run = _Run(0, 0, -1, 0, 0)
    for row, (descriptor, offset, memory) in enumerate(
        zip(ranges.descriptors, ranges.offsets, ranges.memory, strict=True)
    ):
        gap = offset - run.end
        length = len(memory)
        near = descriptor == run.descriptor and 0 <= gap <= _GAP and len(run.vectors) < _RUN_VECTORS
        if not near or offset + length - run.offset > _RUN_BYTES:
            run = _Run(row, row, descriptor, offset, offset)
            runs.append(run)
        elif gap:
            run.vectors.append(trash[:gap])
        run.vectors.append(memory)
        run.end = offset + length
        if ranges.sums is None:
            run.vectors.append(behind[row : row + 1])
            run.end += SUM_BYTES
        run.last = row + 1
    return runs


def _at_hand(run: _Run) -> bool:
    """Read a run, if all of it is in the page cache."""
    try:
        return os.preadv(run.descriptor, run.vectors, run.offset, os.RWF_NOWAIT) == run.bytes
    except OSError:  # it is not, or the file system cannot tell
        return False


def _ask(run: _Run) -> None:
    with suppress(OSError):  # advice alone: reading will say what is wrong
        os.posix_fadvise(run.descriptor, run.offset, run.bytes, os.POSIX_FADV_WILLNEED)


def _read(run: _Run, ranges: Ranges, behind: Sums) -> None:
    """Read a run; range by range where one call does not bring all of it."""
    row = run.first
    try:
        if os.preadv(run.descriptor, run.vectors, run.offset) == run.bytes:
            return
        for row in range(run.first, run.last):
            if not _read_range(row, ranges, behind):
                raise RangeError(row, "the file ends too early: it was cut")
    except OSError as error:
        raise RangeError(row, str(error), error) from error


def _read_range(row: int, ranges: Ranges, behind: Sums) -> bool:
    descriptor, offset, memory = ranges.descriptors[row], ranges.offsets[row], ranges.memory[row]
    if not read_fully(descriptor, memory, offset):
        return False
    stored = behind[row : row + 1].view(np.uint8)
    return ranges.sums is not None or read_fully(descriptor, stored, offset + len(memory))


def _check(run: _Run, ranges: Ranges, behind: Sums) -> None:
    sums = behind if ranges.sums is None else ranges.sums
    for row in range(run.first, run.last):
        if crc32c(ranges.memory[row]) != sums[row]:
            raise RangeError(row, "its checksum does not match")


_let_go: dict[int, list[Bytes]] = {}


def result_memory(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A page-aligned array of any content, in the memory of an earlier one that nobody holds any more, if any.

    A large new array costs the system as much, finding and clearing its pages, as reading into it does.
    """
    size = np.dtype(dtype).itemsize * prod(shape)
    try:
        block = _let_go.get(size + PAGE, []).pop()
    except IndexError:
        block = np.empty(size + PAGE, np.uint8)
    # Of the buffer, not of the array: then views of the result hold `memory`, and `memory` alone holds the block.
    memory = np.frombuffer(block.data, np.uint8, size, -block.ctypes.data % PAGE)
    if size >= _KEPT_FROM:
        weakref.finalize(memory, _keep, block).atexit = False
    return memory.view(dtype).reshape(shape)


def _keep(block: Bytes) -> None:
    if sum(size * len(blocks) for size, blocks in list(_let_go.items())) + len(block) > _KEPT:
        _let_go.clear()
    _let_go.setdefault(len(block), []).append(block)
