"""Stopping a run: Ctrl-C and SIGTERM ask, all ranks agree and stop at the same step, also where a loss is not finite.

On an accelerator a step's flags are read one step later: reading them at once would empty its queue every step.
"""

import signal
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.train.protocols import TrainingError


class StopRequest:
    """Catches the first SIGINT or SIGTERM while its block runs; a second SIGINT interrupts at once.

    Outside the main thread signals cannot be caught, and nothing is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    @property
    def wanted(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


_NAMED = 8  # keys of a bad batch that its error lists


@dataclass(frozen=True)
class _Flags:
    """Of one step: `here` is this rank's own (stop, not finite), `total` the sums over ranks on the way to the host."""

    step: int
    keys: Sequence[str]
    here: Tensor
    total: Tensor
    copied: torch.cuda.Event | None


class Agreement:
    """Whether to stop: every rank calls the same methods at the same steps and gets the same answers."""

    def __init__(self, accelerator: Accelerator, checkpoints: Path) -> None:
        self._accelerator, self._checkpoints = accelerator, checkpoints
        self._lag = 1 if accelerator.device.type == "cuda" else 0
        self._flags: deque[_Flags] = deque()
        self.stopping = False

    def submit(self, step: int, keys: Sequence[str], loss: Tensor, stop: bool) -> None:
        """A step was made; `loss` is still on the device."""
        bad = ~torch.isfinite(loss.detach())
        here = torch.stack([torch.full_like(bad, stop), bad]).float()
        total = self._accelerator.reduce(here, "sum") if self._accelerator.num_processes > 1 else here
        copied = None
        if total.is_cuda:
            total = total.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._flags.append(_Flags(step, keys, here, total, copied))

    def busy(self) -> bool:
        """Whether the device still computes the last step; False on the CPU, which has no queue."""
        copied = self._flags[-1].copied if self._flags else None
        return copied is not None and not copied.query()

    def read(self) -> bool:
        """Whether to stop now; TrainingError, on all ranks, where a loss was not finite."""
        self._read(self._lag)
        return self.stopping

    def settle(self) -> None:
        """Read the flags of every step so far, as must be done before its weights are kept."""
        self._read(0)

    def _read(self, left: int) -> None:
        while len(self._flags) > left:
            flags = self._flags.popleft()
            if flags.copied is not None:
                flags.copied.synchronize()
            stop, bad = flags.total.tolist()
            self.stopping = self.stopping or stop > 0
            if bad:
                self._refuse(flags)

    def _refuse(self, flags: _Flags) -> None:
        own = list(flags.keys) if bool(flags.here[1]) else []
        keys = list(gather_object(own)) if self._accelerator.num_processes > 1 else own
        named = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
        raise TrainingError(
            f"step {flags.step}: the loss is not finite; the batch held {named}; the last whole checkpoint is in "
            f"{self._checkpoints}; lower the rate, clip gradients (training.clip_norm), or look at these images"
        )
