"""How one column's arrays lie: what an encoding makes of a sample, and what a store keeps."""

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a column, by the shape one sample has in it.

    `name` is its path inside the column (`l3/values`, `l3/scales`, `l3/leftover`). `dtype` is a numpy name; bfloat16
    is kept as its uint16 bits. `fill` is what an absent sample reads as: NaN where the dtype has it, so that nothing
    absent can decode to a number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: float | int

    @property
    def nbytes(self) -> int:
        """Bytes of one sample before any lossless codec."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ColumnLayout:
    """Everything a store must know to place a column's samples: arrays, how many samples, samples per block."""

    arrays: tuple[ArrayLayout, ...]
    samples: int
    block: int
    codec: str = "none"

    def __post_init__(self) -> None:
        """Refuse sizes that place nothing."""
        if self.samples < 1 or self.block < 1:
            raise ValueError(f"samples and block must be positive, got {self.samples} and {self.block}")

    @property
    def blocks(self) -> int:
        """How many blocks hold all samples; the last may be partial."""
        return -(-self.samples // self.block)

    def block_samples(self, block: int) -> range:
        """The sample numbers of `block`."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        return range(block * self.block, min((block + 1) * self.block, self.samples))

    def __getitem__(self, name: str) -> ArrayLayout:
        """The array called `name`; KeyError lists the arrays there are."""
        for array in self.arrays:
            if array.name == name:
                return array
        raise KeyError(f"no array {name!r}; arrays are {[array.name for array in self.arrays]}")

    @property
    def nbytes(self) -> int:
        """Bytes of one sample over all arrays, before any lossless codec."""
        return sum(array.nbytes for array in self.arrays)
