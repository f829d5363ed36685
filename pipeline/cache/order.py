"""The order of reading: one global sequence per epoch, fixed by a seed, whatever the number of ranks.

Blocks are shuffled, a window of them is open at a time, and the samples of an open window are shuffled together. The
draws are splitmix64 of a SHA-256 seed, so no library's version can change them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak.errors import SakError, UsageError

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class BatchState:
    """Where reading stands: the epoch, and how many of its global batches have been consumed (never prefetched)."""

    epoch: int = 0
    batches: int = 0

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "BatchState":
        """The state that `as_dict` wrote; SakError where it is something else."""
        try:
            read = cls(int(state["epoch"]), int(state["batches"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SakError(f"not a reading state: {state!r}; it holds `epoch` and `batches`") from error
        if read.epoch < 0 or read.batches < 0:
            raise SakError(f"not a reading state: {state!r}; epoch and batches count from 0")
        return read


@dataclass(frozen=True)
class BatchPart:
    """One rank's part of a global batch: sample numbers (b,), and which of them count (b,), all but padding."""

    samples: Indices
    mask: Mask


@dataclass(frozen=True)
class ReadingOrder:
    """How samples are put in order and cut into batches.

    `batch_size` is global: rank r of R takes rows [r, r+1) * batch_size / R of every batch. Training drops the last
    partial batch (`drop_last`); validation keeps it, padded with a mask. `shuffle=False` reads in storage order.
    """

    batch_size: int
    seed: int = 0
    block: int = 512
    window: int = 16
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that cut nothing, or unequal parts."""
        if min(self.batch_size, self.block, self.window, self.ranks) < 1:
            raise UsageError(
                f"batch size, block, window and ranks must be positive, got {self.batch_size}, {self.block}, "
                f"{self.window} and {self.ranks}"
            )
        if not 0 <= self.rank < self.ranks:
            raise UsageError(f"rank {self.rank} of {self.ranks}: ranks count from 0")
        if self.batch_size % self.ranks:
            raise UsageError(
                f"a global batch of {self.batch_size} does not divide among {self.ranks} ranks; "
                f"take a multiple of {self.ranks}"
            )

    @property
    def part_size(self) -> int:
        """Samples of one rank in one batch."""
        return self.batch_size // self.ranks

    def batches(self, samples: int) -> int:
        """How many global batches `samples` samples make."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def sequence(self, samples: Indices, epoch: int) -> Indices:
        """All of `samples` (ascending sample numbers), each once, in the order of `epoch`."""
        if not self.shuffle or not len(samples):
            return samples
        blocks, block_of = np.unique(samples // self.block, return_inverse=True)
        place = np.empty(len(blocks), np.int64)
        place[np.argsort(_draws(blocks, self._seed("blocks", epoch)), kind="stable")] = np.arange(len(blocks))
        windows = -(-len(blocks) // self.window)
        opened = (place * windows // len(blocks))[block_of].astype(np.uint64)
        draws = _draws(samples, self._seed("samples", epoch)) >> np.uint64(_WINDOW_BITS)
        return samples[np.argsort((opened << np.uint64(64 - _WINDOW_BITS)) | draws, kind="stable")]

    def part(self, sequence: Indices, number: int) -> BatchPart:
        """This rank's part of global batch `number` of a sequence; padding repeats the batch's first sample."""
        if not 0 <= number < self.batches(len(sequence)):
            raise IndexError(f"batch {number} of {self.batches(len(sequence))}")
        first = number * self.batch_size
        rows = np.arange(first + self.rank * self.part_size, first + (self.rank + 1) * self.part_size)
        mask = rows < len(sequence)
        return BatchPart(sequence[np.where(mask, rows, first)], mask)

    def _seed(self, purpose: str, epoch: int) -> np.uint64:
        text = f"sak reading order 1: {purpose}, seed {self.seed}, epoch {epoch}"
        return np.uint64(int.from_bytes(sha256(text.encode()).digest()[:8], "little"))


_WINDOW_BITS = 24  # 16 million windows, and 40 bits to shuffle within one


def _draws(numbers: Indices, seed: np.uint64) -> NDArray[np.uint64]:
    """One uniform 64-bit draw for each number: splitmix64's output function (Steele, Lea and Flood, 2014)."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + seed
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
