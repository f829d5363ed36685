"""What runs beside the forward of a block: images decoded ahead of it, features written behind it, and their clock.

`ViewSource` decodes one view in threads, `to_host` and `WriteBehind` bring features from the device to the store, and
`Clock` says which of them the forward waits for.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.records import Absent
from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.source import BadImage
from pipeline.images.views import Pixels, View, ViewPolicy, make_view, pixel_crc, render
from pipeline.processes import in_order

AHEAD = 2  # batches being decoded while one is forwarded
BEHIND = 2  # batches that may wait to be written
STAGES = ("decode", "forward", "encode", "write")


@dataclass(frozen=True)
class DecodedBatch:
    """Some samples of one view: `pixels` uint8 (n, H, W, 3), and what went wrong with others (`absent`)."""

    samples: tuple[int, ...]
    keys: tuple[str, ...]
    pixels: torch.Tensor
    views: tuple[View, ...]
    crcs: tuple[int, ...]
    absent: tuple[Absent, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, rows: Sequence[int]) -> "DecodedBatch":
        """Some of the samples; `absent` stays with the whole batch."""
        return DecodedBatch(
            tuple(self.samples[row] for row in rows),
            tuple(self.keys[row] for row in rows),
            self.pixels[torch.tensor(rows, dtype=torch.long)],
            tuple(self.views[row] for row in rows),
            tuple(self.crcs[row] for row in rows),
            (),
        )


class ViewSource:
    """Decodes one view of any samples; `pool` does the work of all blocks of a process."""

    def __init__(self, access: ImageAccess, policy: ViewPolicy, pool: ThreadPoolExecutor, *, pin: bool) -> None:
        self.access, self.policy, self._pool, self._pin = access, policy, pool, pin

    def batches(self, samples: Sequence[int], view: int, batch_size: int) -> Iterator[DecodedBatch]:
        """`samples` in order, in groups of `batch_size`, unusable ones left out of their group."""
        groups = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        # Gathering has threads of its own: those of the pool must never wait for one another.
        with ThreadPoolExecutor(AHEAD, "gather") as gather:
            yield from in_order(gather, partial(self._load, view), groups, AHEAD)

    def _load(self, view: int, samples: Sequence[int]) -> DecodedBatch:
        files = self.access.read_many(samples)
        pixels = torch.empty((len(samples), *self.policy.size, 3), dtype=torch.uint8, pin_memory=self._pin)
        keys = self.access.index.keys(samples)
        made = list(self._pool.map(self._decode, files, keys, [view] * len(keys), pixels.numpy()))
        good = [row for row, result in enumerate(made) if not isinstance(result, str)]
        views = [result for result in made if not isinstance(result, str)]
        absent = [Absent(samples[row], keys[row], bad) for row, bad in enumerate(made) if isinstance(bad, str)]
        return DecodedBatch(
            tuple(samples[row] for row in good),
            tuple(keys[row] for row in good),
            pixels if len(good) == len(samples) else pixels[torch.tensor(good, dtype=torch.long)],
            tuple(view for view, _ in views),
            tuple(crc for _, crc in views),
            tuple(absent),
        )

    def _decode(self, file: bytes, key: str, number: int, out: Pixels) -> tuple[View, int] | str:
        """The view written to `out` and its CRC; the reason where the image cannot be used."""
        try:
            image = decode_rgb(file)
            view = make_view(self.policy, key, number, image.size)
            pixels = render(image, view)
        except BadImage as error:
            return error.reason
        np.copyto(out, pixels)
        return view, pixel_crc(pixels)


@dataclass(frozen=True)
class HostCopy:
    """Arrays on their way to the host; complete once the event has passed."""

    tensors: Mapping[str, Tensor]
    event: torch.cuda.Event | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, after waiting for them."""
        if self.event is not None:
            self.event.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def to_host(arrays: Mapping[str, Tensor]) -> HostCopy:
    """Start copying into pinned memory; arrays of the CPU are taken as they are."""
    if all(tensor.device.type == "cpu" for tensor in arrays.values()):
        return HostCopy(arrays, None)
    copies = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in arrays.items()
    }
    event = torch.cuda.Event()
    event.record()
    return HostCopy(copies, event)


class WriteBehind:
    """Runs writes in one thread, in order, at most `BEHIND` behind; errors come up with the next call. Close it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, write: Callable[[], None]) -> None:
        """Queue one write; waits while too many are queued."""
        self.drain(BEHIND - 1)
        self._waiting.append(self._pool.submit(write))

    def drain(self, left: int = 0) -> None:
        """Wait until no more than `left` writes are queued."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Wait for the write that runs; drop those behind it."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class StageSeconds:
    """Where the time of a block goes: waiting for decoding, forward, encoding, waiting for writing, in seconds.

    `turn` is time spent waiting while the forward of another block ran; it has no share in the sum.
    """

    decode: float = 0.0
    forward: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    turn: float = 0.0

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        """The sum of both."""
        return StageSeconds(*map(add, astuple(self), astuple(other)))

    def shares(self) -> dict[str, float]:
        """The share of each of the four stages in their sum."""
        total = sum(getattr(self, name) for name in STAGES)
        return {name: getattr(self, name) / total if total else 0.0 for name in STAGES}

    def note(self) -> str:
        """Such as `decode 3 %, forward 90 %, encode 5 %, write 2 %`."""
        return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in self.shares().items())


class Clock:
    """Adds up the stages of one block. On CUDA forward and encode are timed on the device, read when all is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = dict.fromkeys(StageSeconds.__dataclass_fields__, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def wait(self, stage: str) -> Iterator[None]:
        """Time that this thread spends."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    @contextmanager
    def work(self, stage: str) -> Iterator[None]:
        """Time that the device spends on what is launched inside."""
        if self._device.type != "cuda":
            with self.wait(stage):
                yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((stage, start, end))

    def total(self) -> StageSeconds:
        """What was added up; waits for the device."""
        for stage, start, end in self._events:
            end.synchronize()
            self._seconds[stage] += start.elapsed_time(end) / 1000
        self._events.clear()
        return StageSeconds(**self._seconds)
