"""Page-aligned memory for results, taken again from results that nobody holds any more.

A large new array costs the system as much, finding and clearing its pages, as reading into it does.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
# From here on numpy asks the system for memory each time; smaller pieces malloc keeps by itself.
_RECYCLED_FROM = 1 << 20
# Bytes of let-go memory that are kept for the next results.
_KEPT = 256 << 20


class Recycler:
    """Memory that was let go, oldest first, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a new process, whose lock another thread may have held at the fork."""
        # Reentrant: collecting garbage inside may let memory go.
        self._lock = threading.RLock()
        self._free: deque[NDArray[np.uint8]] = deque()
        self.bytes = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        """`count` page-aligned bytes of any content."""
        with self._lock:
            for place, memory in enumerate(self._free):
                if memory.nbytes == count:
                    del self._free[place]
                    self.bytes -= count
                    return memory
        whole = np.empty(count + PAGE, np.uint8)
        start = -whole.ctypes.data % PAGE
        return whole[start : start + count]

    def keep(self, memory: NDArray[np.uint8]) -> None:
        """Keep let-go memory for `take`."""
        with self._lock:
            self._free.append(memory)
            self.bytes += memory.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._free.popleft().nbytes


RECYCLER = Recycler(_KEPT)
os.register_at_fork(after_in_child=RECYCLER.reset)


class _Loan:
    """Holds memory for the arrays that view it; when the last of them is gone, the memory may be used again."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self, keep: Callable[[NDArray[np.uint8]], None] = RECYCLER.keep) -> None:
        keep(self._memory)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A page-aligned, C-contiguous array of any content."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = RECYCLER.take(count)
    if count >= _RECYCLED_FROM:
        memory = np.asarray(_Loan(memory))
    return memory.view(dtype).reshape(shape)


def address(array: NDArray[Any]) -> int:
    """Where an array's values lie."""
    return int(array.__array_interface__["data"][0])
