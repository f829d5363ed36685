"""A batch of encoded features as it was read, its way to the device, and the buffers that batches are read into."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.reader.process import ArraySizes, Contents, SharedMemory
from pipeline.cache.reader.teacher_reader import TeacherReader
from pipeline.cache.selection import Numbers
from pipeline.cache.stores.base import StoredViews
from pipeline.cache.stores.ranges import Bytes
from sak.errors import SakError
from sak.features import FeatureMaps
from sak.losses.projection import ProjectedTarget, Target, TargetMaps, Targets

Features = Mapping[str, Mapping[str, Tensor]]
Parts = Mapping[str, Numbers]


class ReleasedBatchError(SakError):
    """A batch was used after its buffers were given back for the next one."""


class BatchDecoder:
    """Encoded arrays of any teacher to targets, on any device; the codecs stay where they were used last."""

    def __init__(self, readers: Mapping[str, TeacherReader]) -> None:
        self._readers = dict(readers)
        self._codecs: dict[tuple[str, str, torch.device], ColumnCodec] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_readers": self._readers, "_codecs": {}}

    def __call__(self, features: Features, parts: Parts, dtype: torch.dtype = torch.float32) -> dict[str, Targets]:
        """Teacher -> targets of the wanted levels, on the features' device; `parts` (B,) as `TeacherReader.read`."""
        return {teacher: self._decode(teacher, arrays, parts[teacher], dtype) for teacher, arrays in features.items()}

    def _decode(self, teacher: str, arrays: Mapping[str, Tensor], parts: Numbers, dtype: torch.dtype) -> Targets:
        reader = self._readers[teacher]
        device = next(iter(arrays.values())).device
        groups = self._by_calibration(teacher, parts)
        if len(groups) == 1:
            return self._codec(teacher, *next(iter(groups.items())), device).decode(arrays, reader.levels, dtype)
        pieces, rows = [], []
        for digest, group in groups.items():
            rows.append(torch.from_numpy(np.flatnonzero(np.isin(parts, group))).to(device))
            some = {name: array[rows[-1]] for name, array in arrays.items()}
            pieces.append(self._codec(teacher, digest, group, device).decode(some, reader.levels, dtype))
        return _assemble(pieces, torch.cat(rows).argsort())

    def _by_calibration(self, teacher: str, parts: Numbers) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for part in np.unique(parts).tolist():
            calibration = self._readers[teacher].columns[part].calibration()
            groups.setdefault(calibration.digest if calibration else "", []).append(part)
        return groups

    def _codec(self, teacher: str, digest: str, parts: list[int], device: torch.device) -> ColumnCodec:
        if (teacher, digest, device) not in self._codecs:
            column = self._readers[teacher].columns[parts[0]]
            self._codecs[teacher, digest, device] = column.codec().to(device)
        return self._codecs[teacher, digest, device]


def _assemble(pieces: Sequence[Targets], order: Tensor) -> Targets:
    """One batch from targets of some of its rows each; `order` puts the rows of all pieces as they are in the batch."""
    levels = pieces[0].levels
    maps = [_joined(targets, order) for targets in zip(*pieces, strict=True)]
    full = tuple(target for target in maps if isinstance(target, Tensor))
    return FeatureMaps(levels, full) if len(full) == len(maps) else TargetMaps(levels, tuple(maps))


def _joined(pieces: Sequence[Target], order: Tensor) -> Target:
    projected = [target for target in pieces if isinstance(target, ProjectedTarget)]
    if not projected:
        return torch.cat([target for target in pieces if isinstance(target, Tensor)])[order]
    maps, leftovers = (torch.cat(parts)[order] for parts in zip(*((p.map, p.leftover) for p in projected), strict=True))
    return ProjectedTarget(maps, leftovers, projected[0].teacher_grid)


@dataclass
class EncodedBatch:
    """Some samples' encoded features, in the order asked.

    `samples` (b,) are numbers of the cache's `SampleTable`, `keys` their keys, `mask` (b,) is false in padding.
    `views` hold box, flip and CRC of the pixels, the same for every teacher. `contents` is teacher -> array name -> (b,
    *shape), read through `arrays`; `parts` teacher -> (b,) the part of the column each row came from. `epoch` and
    `number` say where in the reading order it stands. `on_release` takes its buffers back.
    """

    samples: Numbers
    keys: list[str]
    view: int
    views: StoredViews
    mask: NDArray[np.bool_]
    parts: dict[str, Numbers]
    contents: dict[str, dict[str, NDArray[Any]]]
    decoder: BatchDecoder
    epoch: int = 0
    number: int = 0
    on_release: Callable[[torch.cuda.Event | None], None] | None = None
    _released: bool = default(default=False, init=False)
    _copied: torch.cuda.Event | None = default(default=None, init=False)

    def __len__(self) -> int:
        """Rows, padding included."""
        return len(self.samples)

    @property
    def arrays(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Teacher -> array name -> (b, *shape); ReleasedBatchError once the buffers were given back."""
        if self._released:
            raise ReleasedBatchError(
                f"batch {self.number} of epoch {self.epoch} was released and its buffers hold another; "
                "decode or copy a batch before releasing it"
            )
        return self.contents

    @property
    def nbytes(self) -> int:
        """Encoded bytes."""
        return sum(array.nbytes for arrays in self.arrays.values() for array in arrays.values())

    def decode(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Targets]:
        """Teacher -> targets on `device`: FeatureMaps, or TargetMaps of projections. Nothing shares the buffers.

        From pinned buffers the copy to a CUDA device runs beside other work; `release` may follow at once, since the
        buffers wait for it.
        """
        features = {
            teacher: {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}
            for teacher, arrays in self.arrays.items()
        }
        if torch.device(device).type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(torch.device(device)))
        return self.decoder(features, self.parts, dtype)

    def release(self) -> None:
        """Give the buffers back for a later batch; they are filled again once the copies to the device have ended."""
        if not self._released:
            self._released = True
            self.contents = {}
            if self.on_release is not None:
                self.on_release(self._copied)

    def __enter__(self) -> "EncodedBatch":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


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

    def __init__(self, make: Callable[[], Filled], limit: float) -> None:
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

    def lend(self, batch: EncodedBatch, filled: Filled) -> None:
        """Tie `filled` to the batch that holds them, until it is released or thrown away."""
        lost = weakref.finalize(batch, self.lose)
        lost.atexit = False

        def release(copied: torch.cuda.Event | None) -> None:
            if lost.detach() is not None:
                self.give_back(replace(filled, copied=copied))

        batch.on_release = release

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
    if shared:
        memory = SharedMemory(sizes)
        if pin:
            _pin(memory.memory)
        return Filled(memory.contents, memory)
    if pin:
        return Filled(sizes.within(torch.empty(sizes.bytes, dtype=torch.uint8, pin_memory=True).numpy()))
    return Filled(sizes.fresh())


def _pin(memory: Bytes) -> None:
    """Pin memory for as long as an array holds it."""
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
