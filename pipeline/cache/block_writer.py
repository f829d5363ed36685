"""What the writers of both stores share: samples in order, helpers in the background, all files or none."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.block_file import BlockFile
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.open_files import open_files
from pipeline.cache.store import Arrays, FileRecord
from pipeline.storage import Location

Rows = dict[str, NDArray[Any]]

# Threads that flush, fsync and publish: they wait for disks and networks.
_HELPERS = 4


class FilesWriter(ABC):
    """A `BlockWriter` over the files in `self.files`."""

    def __init__(self, location: Location, layout: ColumnLayout, view: int, block: int) -> None:
        self.layout = layout
        self._place = location.url, view, block
        self.count = len(layout.block_samples(block))
        self.files: list[BlockFile] = []
        self.helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="block-files")
        self._last = -1
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._open:
            self.abort()

    @abstractmethod
    def write(self, positions: NDArray[np.int64], rows: Rows) -> None:
        """Append checked samples, C-contiguous and in the machine's byte order."""

    @abstractmethod
    def seal(self) -> None:
        """Append what stands at the end of the files."""

    def append(self, positions: Sequence[int] | NDArray[np.integer[Any]], arrays: Arrays) -> None:
        """See `BlockWriter`."""
        self._refuse_closed()
        places = np.asarray(positions, np.int64)
        rows = self._checked(places, arrays)
        if len(places):
            with self.aborting():
                self.write(places, rows)
            self._last = int(places[-1])

    def finish(self) -> tuple[FileRecord, ...]:
        """See `BlockWriter`."""
        self._refuse_closed()
        with self.aborting():
            self.seal()
            records = tuple(self.helpers.map(BlockFile.finish, self.files))
        self._open = False
        self.helpers.shutdown()
        open_files().drop_block(*self._place)
        return records

    @contextmanager
    def aborting(self) -> Iterator[None]:
        """Whatever fails inside ends the block: a half-written one can never be finished."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _refuse_closed(self) -> None:
        if not self._open:
            raise ValueError("this block was finished, aborted, or failed before")

    def abort(self) -> None:
        """See `BlockWriter`."""
        self._open = False
        self.helpers.shutdown(cancel_futures=True)
        for file in self.files:
            file.abort()

    def _checked(self, places: NDArray[np.int64], arrays: Arrays) -> Rows:
        before = np.concatenate([[self._last], places])
        if len(places) and (np.any(np.diff(before) <= 0) or places[-1] >= self.count):
            raise ValueError(f"positions must ascend from {self._last + 1} to {self.count - 1}, got {places.tolist()}")
        if set(arrays) != {array.name for array in self.layout.arrays}:
            wanted = sorted(array.name for array in self.layout.arrays)
            raise ValueError(f"every array of the layout is wanted, {wanted}, got {sorted(arrays)}")
        return {array.name: _fitting(array, len(places), arrays[array.name]) for array in self.layout.arrays}


def _fitting(array: ArrayLayout, n: int, values: NDArray[Any]) -> NDArray[Any]:
    if values.shape != (n, *array.shape) or values.dtype != np.dtype(array.dtype):
        raise ValueError(f"{array.name} must be {array.dtype} {(n, *array.shape)}, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values)
