"""Boxes, flips and pixel CRCs of a block's views, stored beside the features and checked on reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.store import DamageError
from pipeline.images.views import View

ROW = np.dtype([("box", "<i4", 4), ("scaled", "<i4", 2), ("flip", "u1"), ("crc", "<u4")])
Rows = NDArray[Any]


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
        each = self.rows[row]
        scaled = (int(each["scaled"][0]), int(each["scaled"][1]))
        left, top, right, bottom = (int(edge) for edge in each["box"])
        return View(
            self.number, (left, top, right, bottom), bool(each["flip"]), self.size, scaled if any(scaled) else None
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


def rows_from_bytes(data: bytes, count: int, place: str) -> Rows:
    """What `rows_to_bytes` gave for `count` samples; DamageError where the length differs."""
    if len(data) != count * ROW.itemsize:
        raise DamageError(
            f"{place}: {len(data)} bytes, {count * ROW.itemsize} were written; see `sak-cli cache verify`"
        )
    return np.frombuffer(data, ROW)
