"""Which samples a read is for, sorted by the files they lie in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import ColumnLayout

Longs = NDArray[np.int64]

_FIRST = np.zeros(1, np.int64)


@dataclass(frozen=True)
class SampleRequest:
    """Samples sorted by view, block and position: `order` (n,) are their rows in the result.

    Block g of `blocks`, (view, block), holds the sorted samples `starts[g]` to `starts[g + 1]`.
    """

    samples: Longs
    positions: Longs
    order: Longs
    blocks: list[tuple[int, int]]
    starts: list[int]

    @classmethod
    def of(cls, layout: ColumnLayout, views: int | NDArray[Any], samples: Sequence[int] | NDArray[Any]) -> Self:
        """IndexError for samples or views that cannot be, ValueError for shapes that do not match."""
        numbers = np.asarray(samples, np.int64)
        if numbers.ndim != 1:
            raise ValueError(f"samples must be one row of numbers, got shape {numbers.shape}")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < layout.samples:
            wrong = numbers[(numbers < 0) | (numbers >= layout.samples)][0]
            raise IndexError(f"sample {wrong} of {layout.samples}")
        of_views = np.broadcast_to(np.asarray(views, np.int64), numbers.shape)
        if len(numbers) and of_views.min() < 0:
            raise IndexError(f"view {of_views.min()}")
        return cls._sorted(layout, of_views, numbers)

    @classmethod
    def _sorted(cls, layout: ColumnLayout, views: Longs, samples: Longs) -> Self:
        if len(samples) == 1:
            number = int(samples[0])
            block = int(views[0]), number // layout.block
            return cls(samples, np.array([number % layout.block]), _FIRST, [block], [0, 1])
        order = np.argsort(views * layout.samples + samples, kind="stable")
        samples = samples[order]
        of_block, positions = np.divmod(samples, layout.block)
        numbers = views[order] * layout.blocks + of_block
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
        blocks = [divmod(int(numbers[start]), layout.blocks) for start in starts]
        return cls(samples, positions, order, blocks, [*starts, len(samples)])

    def __len__(self) -> int:
        return len(self.samples)

    def parts(self, blocks: int) -> Iterator[Self]:
        """The same request in parts that touch at most so many blocks each."""
        if len(self.blocks) <= blocks:
            yield self
            return
        for first in range(0, len(self.blocks), blocks):
            starts = self.starts[first : first + blocks + 1]
            part = slice(starts[0], starts[-1])
            yield type(self)(
                self.samples[part],
                self.positions[part],
                self.order[part],
                self.blocks[first : first + blocks],
                [start - starts[0] for start in starts],
            )
