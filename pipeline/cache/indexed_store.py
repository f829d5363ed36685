"""What the two stores share: any samples read through cached indices, in one call without the GIL."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.block_check import check_block
from pipeline.cache.chunk_codecs import ChunkCodec, chunk_codec
from pipeline.cache.file_opener import FileOpener
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.memory import address
from pipeline.cache.native_calls import CUT, FAILED, WRONG_SUM
from pipeline.cache.native_read import TRAILER, UNCHECKED, read_ranges, reason
from pipeline.cache.open_files import FileKey, OpenFile, open_files
from pipeline.cache.sample_request import SampleRequest
from pipeline.cache.staging import Staging
from pipeline.cache.store import REMEDY, Arrays, Damage, DamageError, FileRecord, allocate
from pipeline.storage import Location
from pipeline.storage.errors import explain

Longs = NDArray[np.int64]

# Bytes of a request from which several threads pay.
_THREADED_FROM = 8 << 20


class IndexedStore(ABC):
    """The reading side of a `ColumnStore`.

    `staging` takes copies of remote files, `threads` read a large request (by default as many as there are cores, up
    to 4), and `verify` off skips the checksums of samples: for measurements, never for use.
    """

    def __init__(
        self,
        location: Location,
        layout: ColumnLayout,
        *,
        staging: Staging | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self.location, self.layout = location, layout
        self.opener = FileOpener(location, staging or Staging())
        self.threads = threads or min(4, len(os.sched_getaffinity(0)))
        self.verify = verify

    @abstractmethod
    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """What names the file with an array, among those of a block, and which of the arrays in it it is."""

    @abstractmethod
    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of the file that `data_file` names."""

    @abstractmethod
    def files(self, view: int, block: int) -> tuple[str, ...]:
        """See `ColumnStore`."""

    @abstractmethod
    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """Open data files, with their indices read and checked. DamageError names a file that is not right."""

    def read(
        self,
        views: int | NDArray[np.integer[Any]],
        samples: Sequence[int] | NDArray[np.integer[Any]],
        names: Sequence[str],
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        """See `ColumnStore`."""
        request = SampleRequest.of(self.layout, views, samples)
        arrays = [self.layout[name] for name in names]
        target = allocate(self.layout, names, len(request)) if out is None else _checked_out(arrays, len(request), out)
        if len(request) and arrays:
            for part in request.parts(max(1, open_files().capacity // len(arrays))):
                self._read_part(part, arrays, target)
        return target

    def read_block(self, view: int, block: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `ColumnStore`."""
        return self.read(view, np.asarray(self.layout.block_samples(block)), names)

    def present(self, view: int, block: int) -> NDArray[np.bool_]:
        """See `ColumnStore`."""
        count = len(self.layout.block_samples(block))
        with self._borrowed([(view, block)], self.layout.arrays) as files:
            there = np.stack([file.places[row, :, 0] >= 0 for _, (file,), row in files])
        if np.any(there != there[0]) or np.any(there[0, count:]):
            path = self.location.at(self.files(view, block)[0])
            raise DamageError(f"{path}: the arrays of this block hold different samples; {REMEDY}")
        return there[0, :count].copy()

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        return check_block(self, view, block, records, deep=deep)

    def forget(self) -> None:
        """See `ColumnStore`."""
        open_files().drop(self.location.url)

    def _read_part(self, request: SampleRequest, arrays: Sequence[ArrayLayout], target: Arrays) -> None:
        with self._borrowed(request.blocks, arrays) as lent:
            plain = [each for each in lent if chunk_codec(self.layout.codec, each[0]) is None]
            table = np.empty((len(plain), len(request), 5), np.int64)
            for rows, (array, files, row) in zip(table, plain, strict=True):
                self._locate(request, files, row, rows)
                rows[:, 1] = address(target[array.name]) + array.nbytes * request.order
            self._fetch(table, [array for array, _, _ in plain], request, target)
            for array, files, row in lent:
                if (codec := chunk_codec(self.layout.codec, array)) is not None:
                    self._read_encoded(request, array, codec, (files, row), target)

    def _locate(self, request: SampleRequest, files: Sequence[OpenFile], row: int, rows: Longs) -> None:
        """Fill all but the addresses of an array's `rows` for `read_ranges`."""
        rows[:, 4] = TRAILER
        starts = request.starts
        for number, file in enumerate(files):
            start, stop = starts[number], starts[number + 1]
            rows[start:stop, 0] = file.descriptor
            rows[start:stop, 2 : 2 + file.places.shape[2]] = file.places[row][request.positions[start:stop]]
        if not self.verify:
            rows[:, 4] = UNCHECKED

    def _fetch(self, table: Longs, arrays: Sequence[ArrayLayout], request: SampleRequest, target: Arrays) -> None:
        """Read the rows of `table`, (arrays, samples, 5); absent samples become the fill."""
        there = table[..., 2] >= 0
        wanted = table.reshape(-1, 5)
        if not there.all():
            wanted = table[there]
            for array, present in zip(arrays, there, strict=True):
                target[array.name][request.order[~present]] = np.dtype(array.dtype).type(array.fill)
        status = read_ranges(wanted, self.threads if wanted[:, 3].sum() >= _THREADED_FROM else 1)
        if status.any():
            bad = int(np.flatnonzero(status)[0])
            number, at = divmod(int(np.flatnonzero(there)[bad]), len(request))
            self._fail(arrays[number], request, at, int(status[bad]))

    def _read_encoded(
        self,
        request: SampleRequest,
        array: ArrayLayout,
        codec: ChunkCodec,
        lent: tuple[Sequence[OpenFile], int],
        target: Arrays,
    ) -> None:
        rows = np.empty((len(request), 5), np.int64)
        self._locate(request, *lent, rows)
        present = np.flatnonzero(rows[:, 2] >= 0)
        ends = np.cumsum(np.where(rows[:, 2] >= 0, rows[:, 3], 0))
        chunks = np.empty(int(ends[-1]), np.uint8)
        rows[:, 1] = address(chunks) + ends - rows[:, 3]
        self._fetch(rows[None], [array], request, target)
        for i in present.tolist():
            sample = target[array.name][request.order[i] : request.order[i] + 1].reshape(-1)
            try:
                codec.decode(chunks[ends[i] - rows[i, 3] : ends[i]], sample)
            except (RuntimeError, ValueError):
                self._fail(array, request, i, WRONG_SUM)

    def _fail(self, array: ArrayLayout, request: SampleRequest, at: int, status: int) -> None:
        """Raise what went wrong with the request's sorted sample `at`; the files are opened anew next time."""
        block = next(block for block, stop in zip(request.blocks, request.starts[1:], strict=True) if at < stop)
        place = self.location.at(self.data_path(self.data_file(array)[0], *block))
        self.forget()
        if status not in (CUT, WRONG_SUM):
            raise explain(OSError(status - FAILED, os.strerror(status - FAILED)), place)
        what = f"sample {request.samples[at]} of view {block[0]} is damaged in {array.name}, {reason(status)}"
        raise DamageError(f"{place}: {what}; {REMEDY}")

    @contextmanager
    def _borrowed(
        self, blocks: Sequence[tuple[int, int]], arrays: Sequence[ArrayLayout]
    ) -> Iterator[list[tuple[ArrayLayout, list[OpenFile], int]]]:
        """Each array with its open files, in the order of `blocks`, and its row in them."""
        url = self.location.url
        keys = [[(url, self.data_file(array)[0], *block) for block in blocks] for array in arrays]
        lent = open_files().borrow([key for of_array in keys for key in of_array], self.load)
        try:
            yield [
                (array, [lent[key] for key in of_array], self.data_file(array)[1])
                for array, of_array in zip(arrays, keys, strict=True)
            ]
        finally:
            open_files().give_back(lent.values())


def _checked_out(arrays: Sequence[ArrayLayout], n: int, out: Arrays) -> dict[str, NDArray[Any]]:
    for array in arrays:
        given = out.get(array.name)
        if given is None or given.shape != (n, *array.shape) or given.dtype != np.dtype(array.dtype):
            raise ValueError(f"out[{array.name!r}] must be {array.dtype} {(n, *array.shape)}, got {_kind(given)}")
        if not (given.flags.c_contiguous and given.flags.writeable):
            raise ValueError(f"out[{array.name!r}] must be contiguous and writeable")
    return {array.name: out[array.name] for array in arrays}


def _kind(given: NDArray[Any] | None) -> str:
    return "nothing" if given is None else f"{given.dtype} {given.shape}"
