"""Where the time of a block goes: waiting for decoding, forward, encoding, waiting for writing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

STAGES = ("decode", "forward", "encode", "write")


@dataclass(frozen=True)
class StageSeconds:
    """Seconds by stage; `turn` is time spent waiting while the forward of another block ran."""

    decode: float = 0.0
    forward: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    turn: float = 0.0

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        """The sum of both."""
        return StageSeconds(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

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
