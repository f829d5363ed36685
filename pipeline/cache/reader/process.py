"""Reading samples in a process of its own, into memory that it shares with this one.

A system call gives up the GIL, and beside a busy Python thread waits milliseconds to have it back; a batch is hundreds
of calls. So training asks another process for whole batches, by one message each. That process imports nothing but
what reading needs (no torch: 40 MB, half a second), takes its orders over a socket, and ends when that closes: with its
parent, however that ends. The memory has no name in any file system, so nothing is left behind and no limit of
/dev/shm is met.
"""

import mmap
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import Arrays, DamageError
from pipeline.cache.stores.blocks import ColumnStore
from pipeline.cache.stores.ranges import PAGE, Bytes, result_memory
from sak.errors import SakError

_PATIENCE = 10  # seconds for the batch at hand when reading ends early

Contents = Mapping[str, Arrays]  # by teacher


@dataclass(frozen=True)
class StoredPart:
    """The wanted arrays of one part of a teacher's column, which lies at `path`."""

    path: str
    store: ColumnStore
    names: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Samples of a batch that one part holds, by its own numbers, and their rows of the batch; None is all rows."""

    part: int
    samples: NDArray[np.int64]
    rows: NDArray[np.bool_] | None


Parts = Mapping[str, Sequence[StoredPart]]  # by teacher
Pieces = Mapping[str, Sequence[Piece]]


def read_pieces(parts: Parts, view: int, pieces: Pieces, out: Contents) -> None:
    """Read a batch; DamageError names column, file and sample."""
    for teacher, of_teacher in pieces.items():
        for piece in of_teacher:
            part = parts[teacher][piece.part]
            into = out[teacher] if piece.rows is None else None
            try:
                arrays = part.store.read(view, piece.samples, part.names, into)
            except DamageError as error:
                raise DamageError(f"{part.path}: {error}") from error
            if piece.rows is not None:
                for name, array in arrays.items():
                    out[teacher][name][piece.rows] = array


@dataclass(frozen=True)
class ArraySizes:
    """Shape and dtype of every array of a batch, by teacher and name."""

    arrays: Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]]

    @classmethod
    def of(cls, parts: Parts, rows: int) -> "ArraySizes":
        """Of batches of so many rows."""
        arrays = {}
        for teacher, (part, *_) in parts.items():  # all parts of a teacher have the same arrays
            layouts = [part.store.layout[name] for name in part.names]
            arrays[teacher] = {layout.name: ((rows, *layout.shape), layout.dtype) for layout in layouts}
        return cls(arrays)

    @property
    def bytes(self) -> int:
        """Of all arrays, each of them on pages of its own."""
        return sum(_paged(*array) for arrays in self.arrays.values() for array in arrays.values())

    def fresh(self) -> Contents:
        """Arrays in this process's own memory."""
        return self.within(result_memory((self.bytes,), "uint8"))

    def within(self, memory: Bytes) -> Contents:
        """The arrays that lie in `memory` one after the other."""
        contents: dict[str, dict[str, NDArray[Any]]] = {}
        start = 0
        for teacher, arrays in self.arrays.items():
            contents[teacher] = {}
            for name, (shape, dtype) in arrays.items():
                size = prod(shape) * np.dtype(dtype).itemsize
                contents[teacher][name] = memory[start : start + size].view(dtype).reshape(shape)
                start += _paged(shape, dtype)
        return contents


def _paged(shape: tuple[int, ...], dtype: str) -> int:
    return -(-prod(shape) * np.dtype(dtype).itemsize // PAGE) * PAGE


class SharedMemory:
    """Memory for one batch that other processes can map; given back to the system when no array of it is held."""

    _numbers = count()

    def __init__(self, sizes: ArraySizes) -> None:
        """SakError where there is not so much memory."""
        self.number = next(self._numbers)
        self.descriptor = os.memfd_create("sak-features")
        weakref.finalize(self, os.close, self.descriptor)
        try:
            os.posix_fallocate(self.descriptor, 0, sizes.bytes)  # else it is the first touch that kills the process
            self.memory = np.frombuffer(mmap.mmap(self.descriptor, sizes.bytes), np.uint8)
        except OSError as error:
            raise SakError(
                f"no memory for {sizes.bytes / 1e6:.0f} MB of features that are read ahead "
                f"({error.strerror}); take smaller batches"
            ) from error
        self.contents = sizes.within(self.memory)


class ProcessReader:
    """Reads batches in the order asked for, in a process that ends with this object, at the latest with its parent."""

    def __init__(self, parts: Parts, sizes: ArraySizes) -> None:
        self._owner = os.getpid()
        self._connection, child_end = Pipe()
        with child_end:
            command = f"from {serve.__module__} import {serve.__name__} as serve; serve({child_end.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                pass_fds=[child_end.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                process_group=0,  # an interrupt at the terminal is the parent's to answer, which then hangs up
            )
        self._known: weakref.WeakValueDictionary[int, SharedMemory] = weakref.WeakValueDictionary()  # to the process
        self._pending = 0
        self.close = weakref.finalize(self, _end, self._owner, self._connection, self._process)
        self._send((parts, sizes))

    def submit(self, view: int, pieces: Pieces, memory: SharedMemory) -> None:
        """Ask for a batch, which is read into `memory` as soon as the process can."""
        new = memory.number not in self._known
        self._known[memory.number] = memory
        self._send((memory.number, set(self._known), view, pieces), memory.descriptor if new else None)
        self._pending += 1

    def wait(self) -> None:
        """Until the oldest batch asked for is there; raises what reading it raised, SakError where the process died."""
        try:
            error = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise self._died() from lost
        except BaseException:  # an interrupt: half an answer may be left, which the next one would be taken for
            self._process.kill()
            raise
        self._pending -= 1
        if error is not None:
            raise error

    def drain(self) -> None:
        """Give up what was asked for; its memory may be written by others after this."""
        while self._pending and self.alive():
            with suppress(SakError):  # of a batch that nobody will ask for
                self.wait()

    def alive(self) -> bool:
        """Whether it can read for this process: a fork of its parent must start another."""
        return self._owner == os.getpid() and self.close.alive and self._process.poll() is None

    def _send(self, message: object, descriptor: int | None = None) -> None:
        try:
            self._connection.send(message)
            if descriptor is not None:
                send_handle(self._connection, descriptor, self._process.pid)
        except OSError as lost:
            raise self._died() from lost

    def _died(self) -> SakError:
        self.close()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return SakError(
            f"the process that reads features died ({how}), perhaps for want of memory; "
            "take smaller batches, and go on with --resume"
        )


def _end(owner: int, connection: Connection, process: "subprocess.Popen[bytes]") -> None:
    """Let the process finish the batch at hand; nothing where this is a fork of its parent."""
    if owner != os.getpid():
        return
    # Shut down, not only closed: a fork of this process may hold the connection open, and the reader would wait on.
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as connected:
        connected.shutdown(socket.SHUT_RDWR)
    connection.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(descriptor: int) -> None:
    """What the process does until its parent hangs up."""
    with Connection(descriptor) as connection:
        for parts, view, pieces, contents in _orders(connection):
            error = None
            try:
                read_pieces(parts, view, pieces, contents)
            except SakError as failure:
                error = failure
            with suppress(ConnectionError):
                connection.send(error)


def _orders(connection: Connection) -> Iterator[tuple[Parts, int, Pieces, Contents]]:
    """What the parent asks for. Memory stays mapped until the parent drops it: anew, all its pages were found again."""
    with suppress(EOFError, ConnectionError):
        parts, sizes = connection.recv()
        mapped: dict[int, Contents] = {}
        while True:
            number, kept, view, pieces = connection.recv()
            mapped = {known: contents for known, contents in mapped.items() if known in kept}
            if number not in mapped:  # then its descriptor follows
                with os.fdopen(recv_handle(connection), "rb") as file:
                    mapped[number] = sizes.within(np.frombuffer(mmap.mmap(file.fileno(), sizes.bytes), np.uint8))
            yield parts, view, pieces, mapped[number]
