"""What both stores keep of a column: the layout of its arrays, boxes and CRCs of its views, records of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.ranges import result_memory
from pipeline.images.views import View
from sak.errors import SakError

REMEDY = "run `sak-cli cache verify --deep` to see how far it goes and `sak-cli cache repair` to make it again"
FRAME = "frame-sha256:"
ROW = np.dtype([("box", "<i4", 4), ("scaled", "<i4", 2), ("flip", "u1"), ("crc", "<u4")])

Arrays = Mapping[str, NDArray[Any]]
Rows = NDArray[Any]


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


class DamageError(SakError):
    """Stored bytes that cannot be what was written: a lost, cut or changed file."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a finished block: path inside the column, bytes, and a digest.

    A store's digest is `frame-sha256:` and the SHA-256 of all bytes but the samples' values: headers, indices, and the
    values' CRC32Cs, each of which answers for its values. (A SHA-256 of everything is slower than the disk; a CRC32C
    of everything would not see exchanged files, since data followed by its own CRC always leaves the same remainder.)
    """

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Damage:
    """One thing wrong with a file, and the sample it strikes where that is known."""

    path: str
    problem: str
    sample: int | None = None


def allocate(layout: ColumnLayout, names: Sequence[str], n: int) -> dict[str, NDArray[Any]]:
    """Buffers for `ColumnStore.read` of `n` samples."""
    return {name: result_memory((n, *layout[name].shape), layout[name].dtype) for name in names}


@dataclass(frozen=True)
class StoredViews:
    """The views of n samples: `rows` (n,) of `ROW`, view `number`, `size` (height, width) of the pixels.

    A box is (left, top, right, bottom). `scaled` is (0, 0) where the box is scaled to `size` itself.
    """

    rows: Rows
    number: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, row: int) -> View:
        """One of them, ready to be rendered."""
        box, scaled, flip, _ = self.rows[row]
        left, top, right, bottom = box.tolist()
        height, width = scaled.tolist()
        return View(
            self.number, (left, top, right, bottom), bool(flip), self.size, (height, width) if height or width else None
        )

    @property
    def boxes(self) -> NDArray[np.int32]:
        """(n, 4): left, top, right, bottom."""
        return self.rows["box"]

    @property
    def flips(self) -> NDArray[np.bool_]:
        """(n,): whether the pixels are mirrored."""
        return self.rows["flip"].astype(bool)

    @property
    def crcs(self) -> NDArray[np.uint32]:
        """(n,): CRC32C of the pixels."""
        return self.rows["crc"]


def to_rows(views: Sequence[View], crcs: Sequence[int]) -> Rows:
    """Views and the CRCs of their pixels as rows."""
    rows = np.zeros(len(views), ROW)
    for row, view, crc in zip(rows, views, crcs, strict=True):
        row["box"], row["scaled"], row["flip"], row["crc"] = view.box, view.scaled or (0, 0), view.flip, crc
    return rows


def rows_to_bytes(rows: Rows) -> bytes:
    """The rows of a whole block, absent samples' zeroed, as they lie on disk."""
    return rows.astype(ROW).tobytes()


def rows_from_bytes(data: bytes, count: int, where: str) -> Rows:
    """What `rows_to_bytes` gave for `count` samples; DamageError where the length differs."""
    if len(data) != count * ROW.itemsize:
        raise DamageError(
            f"{where}: {len(data)} bytes, {count * ROW.itemsize} were written; see `sak-cli cache verify`"
        )
    return np.frombuffer(data, ROW)
