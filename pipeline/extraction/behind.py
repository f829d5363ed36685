"""From the device to the store, behind whoever makes the features: pinned copies, and a thread that writes."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

BEHIND = 2  # batches that may wait to be written


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
    """Runs what it is given in one thread, in order, at most `BEHIND` behind; errors come up with the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, write: Callable[[], None]) -> None:
        """Queue one write; waits while too many are queued."""
        while len(self._waiting) >= BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(write))

    def drain(self) -> None:
        """Wait for all writes."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
