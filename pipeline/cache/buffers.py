"""Buffers that are filled again and again, each only after the batch in it was given back."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.store import allocate
from pipeline.cache.teacher_reader import TeacherReader
from sak.errors import SakError

Contents = dict[str, dict[str, NDArray[Any]]]


class HeldBatchesError(SakError):
    """Batches are kept without being released, so there is nothing to read the next one into."""


@dataclass(frozen=True)
class Filled:
    """Buffers that may be written once `copied`, a copy to the device, has ended."""

    contents: Contents
    copied: torch.cuda.Event | None = None

    def wait(self) -> Contents:
        """The buffers, ready to be written."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.contents


class BufferPool:
    """At most `limit` sets of buffers; a set whose batch was thrown away unreleased is never reused, but replaced."""

    def __init__(self, make: Callable[[], Contents], limit: int) -> None:
        self._make, self._limit = make, limit
        self._free: list[Filled] = []
        self._made = 0
        self._lock = Lock()

    def take(self) -> Filled:
        """A free set, or a new one; HeldBatchesError where `limit` sets are out."""
        with self._lock:
            if self._free:
                return self._free.pop(0)
            if self._made >= self._limit:
                raise HeldBatchesError(
                    f"{self._made} batches are held at once; call batch.release() once a batch is decoded, "
                    "or read with recycle=False"
                )
            self._made += 1
        return Filled(self._make())

    def lend(self, batch: EncodedBatch, contents: Contents) -> EncodedBatch:
        """Tie `contents` to the batch that holds them, until it is released or thrown away."""
        lost = weakref.finalize(batch, self.lose)
        lost.atexit = False

        def release(copied: torch.cuda.Event | None) -> None:
            if lost.detach() is not None:
                self.give_back(Filled(contents, copied))

        batch.on_release = release
        return batch

    def give_back(self, filled: Filled) -> None:
        """A set whose batch was released."""
        with self._lock:
            self._free.append(filled)

    def lose(self) -> None:
        """A set was thrown away, or could not be filled."""
        with self._lock:
            self._made -= 1


def make_buffers(readers: Mapping[str, TeacherReader], count: int, *, pin: bool) -> Contents:
    """Buffers for `count` samples of the wanted arrays; pinned ones copy to a CUDA device beside other work."""
    if not pin:
        return {teacher: allocate(reader.layout, reader.arrays, count) for teacher, reader in readers.items()}
    return {
        teacher: {
            name: _pinned((count, *reader.layout[name].shape), reader.layout[name].dtype) for name in reader.arrays
        }
        for teacher, reader in readers.items()
    }


def _pinned(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory.view(np.dtype(dtype)).reshape(shape)
