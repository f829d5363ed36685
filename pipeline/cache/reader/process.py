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
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import prod
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.indexed import Contents, Parts, Pieces, read_pieces
from pipeline.cache.stores.ranges import Bytes, result_memory
from sak.errors import SakError

_PAGE = 4096
_PATIENCE = 10  # seconds for the batch at hand when reading ends early


@dataclass(frozen=True)
class ArraySizes:
    """Shape and dtype of every array of a batch, by teacher and name."""

    arrays: Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]]

    @classmethod
    def of(cls, parts: Parts, rows: int) -> "ArraySizes":
        """Of batches of so many rows."""
        layouts = {teacher: (of_teacher[0].store.layout, of_teacher[0].names) for teacher, of_teacher in parts.items()}
        return cls(
            {
                teacher: {name: ((rows, *layout[name].shape), layout[name].dtype) for name in names}
                for teacher, (layout, names) in layouts.items()
            }
        )

    @property
    def bytes(self) -> int:
        """Of all arrays, each of them on pages of its own."""
        return sum(_paged(*array) for arrays in self.arrays.values() for array in arrays.values())

    def fresh(self) -> Contents:
        """Arrays in this process's own memory."""
        return {
            teacher: {name: result_memory(*array) for name, array in arrays.items()}
            for teacher, arrays in self.arrays.items()
        }

    def within(self, memory: Bytes) -> Contents:
        """The arrays that lie in `memory` one after the other."""
        found: dict[str, dict[str, NDArray[Any]]] = {}
        start = 0
        for teacher, arrays in self.arrays.items():
            found[teacher] = {}
            for name, (shape, dtype) in arrays.items():
                size = prod(shape) * np.dtype(dtype).itemsize
                found[teacher][name] = memory[start : start + size].view(dtype).reshape(shape)
                start += _paged(shape, dtype)
        return found


def _paged(shape: tuple[int, ...], dtype: str) -> int:
    return -(-prod(shape) * np.dtype(dtype).itemsize // _PAGE) * _PAGE


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


class BatchReader(Protocol):
    """Reads batches in the order in which they are asked for."""

    def submit(self, view: int, pieces: Pieces, contents: Contents, shared: SharedMemory | None) -> None:
        """Ask for a batch, into `contents`, which lie in `shared` where another process reads."""

    def wait(self) -> None:
        """Until the oldest batch asked for is there; what reading it raised is raised here."""

    def drain(self) -> None:
        """Give up what was asked for; its memory may be written by others after this."""

    def alive(self) -> bool:
        """Whether it can read for this process."""


class HereReader:
    """Reads in this thread, when a batch is waited for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asked: deque[tuple[int, Pieces, Contents]] = deque()

    def submit(self, view: int, pieces: Pieces, contents: Contents, shared: SharedMemory | None) -> None:
        """See `BatchReader`."""
        del shared
        self._asked.append((view, pieces, contents))

    def wait(self) -> None:
        """See `BatchReader`."""
        read_pieces(self._parts, *self._asked.popleft())

    def drain(self) -> None:
        """See `BatchReader`."""
        self._asked.clear()

    def alive(self) -> bool:
        """See `BatchReader`."""
        return True


class ProcessReader:
    """Reads in a process of its own, as soon as it can; ends with this object, and with this process at the latest."""

    def __init__(self, parts: Parts, sizes: ArraySizes) -> None:
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = f"from {serve.__module__} import {serve.__name__} as serve; serve({theirs.fileno()})"
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                process_group=0,  # an interrupt at the terminal is the parent's to answer, which then hangs up
            )
        self._connection = Connection(os.dup(self._socket.fileno()))
        self._mapped: weakref.WeakValueDictionary[int, SharedMemory] = weakref.WeakValueDictionary()
        self._sent: set[int] = set()
        self._pending = 0
        self._end = weakref.finalize(self, _end, self._owner, self._socket, self._connection, self._process)
        self._tell((parts, sizes))

    def submit(self, view: int, pieces: Pieces, contents: Contents, shared: SharedMemory | None) -> None:
        """See `BatchReader`."""
        del contents
        if shared is None:
            raise ValueError("another process reads into shared memory alone")
        new = shared.number not in self._sent
        self._mapped[shared.number] = shared
        gone = self._sent - set(self._mapped)
        self._sent = set(self._mapped)
        self._tell(_Order(shared.number, new, gone, view, pieces))
        if new:
            socket.send_fds(self._socket, [b"m"], [shared.descriptor])
        self._pending += 1

    def wait(self) -> None:
        """See `BatchReader`; SakError where the process is dead."""
        try:
            error = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise self._died() from lost
        except BaseException:  # half an answer may be left
            self._process.kill()
            raise
        self._pending -= 1
        if error is not None:
            raise error

    def drain(self) -> None:
        """See `BatchReader`."""
        while self._pending and self.alive():
            with suppress(SakError):  # of a batch that nobody will ask for
                self.wait()

    def alive(self) -> bool:
        """See `BatchReader`."""
        return self._owner == os.getpid() and self._end.alive and self._process.poll() is None

    def close(self) -> None:
        """Let the process finish the batch at hand, and end it."""
        self._end()

    def _tell(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError as lost:
            raise self._died() from lost

    def _died(self) -> SakError:
        self._end()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return SakError(
            f"the process that reads features died ({how}), perhaps for want of memory; "
            "take smaller batches, and go on with --resume"
        )


def _end(owner: int, connected: socket.socket, connection: Connection, process: "subprocess.Popen[bytes]") -> None:
    """Let the process finish the batch at hand; nothing where this is a fork of its parent."""
    if owner != os.getpid():
        return
    with suppress(OSError):  # it may be gone already
        connected.shutdown(socket.SHUT_RDWR)
    connected.close()
    connection.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class _Order:
    """A batch to be read into memory `number`, whose descriptor follows where it is `new`; others are `gone`."""

    number: int
    new: bool
    gone: set[int]
    view: int
    pieces: Pieces


def serve(descriptor: int) -> None:
    """What the process does until its parent hangs up."""
    with socket.socket(fileno=descriptor) as connected, Connection(os.dup(descriptor)) as connection:
        messages = iter(partial(_received, connection), None)
        parts, sizes = next(messages, ({}, ArraySizes({})))
        mapped: dict[int, Contents] = {}
        for order in messages:
            for number in order.gone:
                mapped.pop(number, None)
            if order.new:
                mapped[order.number] = _map(connected, sizes)
            error = _failure(parts, order, mapped[order.number])
            with suppress(ConnectionError):
                connection.send(error)


def _received(connection: Connection) -> Any:
    """The next message; None where the parent has hung up."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return None


def _failure(parts: Parts, order: _Order, contents: Contents) -> SakError | None:
    try:
        read_pieces(parts, order.view, order.pieces, contents)
    except SakError as error:
        return error
    return None


def _map(connected: socket.socket, sizes: ArraySizes) -> Contents:
    _, (descriptor,), _, _ = socket.recv_fds(connected, 1, 1)
    try:
        return sizes.within(np.frombuffer(mmap.mmap(descriptor, sizes.bytes), np.uint8))
    finally:
        os.close(descriptor)
