"""Buffers that are filled again and again, each only after the batch in it was given back."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

import torch

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.ranges import Bytes
from pipeline.cache.reader_process import ArraySizes, Contents, SharedMemory
from sak.errors import SakError


class HeldBatchesError(SakError):
    """Batches are kept without being released, so there is nothing to read the next one into."""


@dataclass(frozen=True)
class Filled:
    """Buffers that may be written once `copied`, a copy to the device, has ended; `shared` with other processes."""

    contents: Contents
    shared: SharedMemory | None = None
    copied: torch.cuda.Event | None = None

    @property
    def ready(self) -> bool:
        """Whether they may be written now."""
        return self.copied is None or self.copied.query()

    def wait(self) -> Contents:
        """The buffers, ready to be written."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.contents


class BufferPool:
    """At most `limit` sets of buffers; a set whose batch was thrown away unreleased is never reused, but replaced."""

    def __init__(self, make: Callable[[], Filled], limit: int) -> None:
        self._make, self._limit = make, limit
        self._free: list[Filled] = []
        self._made = 0
        self._lock = Lock()

    def take(self) -> Filled:
        """A set that is ready, else a new one, else the oldest; HeldBatchesError where `limit` sets are out."""
        with self._lock:
            ready = next((number for number, filled in enumerate(self._free) if filled.ready), None)
            if self._free and (ready is not None or self._made >= self._limit):
                return self._free.pop(ready or 0)
            if self._made >= self._limit:
                raise HeldBatchesError(
                    f"{self._made} batches are held at once; call batch.release() once a batch is decoded, "
                    "or read with recycle=False"
                )
            self._made += 1
        return self._make()

    def lend(self, batch: EncodedBatch, filled: Filled) -> EncodedBatch:
        """Tie `filled` to the batch that holds them, until it is released or thrown away."""
        lost = weakref.finalize(batch, self.lose)
        lost.atexit = False

        def release(copied: torch.cuda.Event | None) -> None:
            if lost.detach() is not None:
                self.give_back(replace(filled, copied=copied))

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


def make_buffers(sizes: ArraySizes, *, shared: bool, pin: bool) -> Filled:
    """Buffers for a batch, `shared` or not; pinned ones copy to a CUDA device beside other work."""
    memory = SharedMemory(sizes) if shared else None
    if memory is not None and pin:
        _pin(memory.memory)
    if memory is not None:
        return Filled(memory.contents, memory)
    return Filled(
        sizes.within(torch.empty(sizes.bytes, dtype=torch.uint8, pin_memory=True).numpy()) if pin else sizes.fresh()
    )


def _pin(memory: Bytes) -> None:
    """Pin memory for as long as an array holds it."""
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
