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
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.native_calls import CUT, FAILED, WRONG_SUM
from pipeline.cache.native_read import UNCHECKED, Opened, open_tails, read_ranges, reason
from pipeline.cache.open_files import OpenFile, open_files
from pipeline.cache.sample_request import SampleRequest
from pipeline.cache.staging import Staging
from pipeline.cache.store import REMEDY, Arrays, Damage, DamageError, FileRecord, allocate
from pipeline.storage import Location, MissingFileError
from pipeline.storage.errors import explain
from sak.errors import SakError

Longs = NDArray[np.int64]

# Bytes of a request from which several threads pay.
_THREADED_FROM = 8 << 20
# Bytes of a sample below which its file is read ahead whole.
_SMALL = 32 << 10
_OPEN_AT_ONCE = 8


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
        self.staging = staging or Staging()
        self.threads = threads or min(4, len(os.sched_getaffinity(0)))
        self.verify = verify
        self.codecs = {array.name: chunk_codec(layout.codec, array) for array in layout.arrays}

    @abstractmethod
    def data_path(self, array: ArrayLayout, view: int, block: int) -> str:
        """The file with one array of a block, inside the column."""

    @abstractmethod
    def row(self, array: ArrayLayout) -> int:
        """Which of the arrays in that file it is."""

    @abstractmethod
    def files(self, view: int, block: int) -> tuple[str, ...]:
        """See `ColumnStore`."""

    @abstractmethod
    def load(self, paths: Sequence[str]) -> list[OpenFile]:
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
            rows = [file[0].offsets[self.row(array)] for array, file in zip(self.layout.arrays, files, strict=True)]
        there = np.stack(rows) >= 0
        if np.any(there != there[0]) or np.any(there[0, count:]):
            path = self.location.at(self.data_path(self.layout.arrays[0], view, block))
            raise DamageError(f"{path}: the arrays of this block hold different samples; {REMEDY}")
        return there[0, :count].copy()

    def forget(self) -> None:
        """See `ColumnStore`."""
        open_files().drop(f"{self.location.url}/")

    def _read_part(self, request: SampleRequest, arrays: Sequence[ArrayLayout], target: Arrays) -> None:
        with self._borrowed(request.blocks, arrays) as files:
            plain = [(a, f) for a, f in zip(arrays, files, strict=True) if self.codecs[a.name] is None]
            table = _empty_table(len(plain) * len(request))
            for (array, of_array), rows in zip(plain, np.split(table, max(1, len(plain))), strict=False):
                self._locate(request, array, of_array, rows)
                rows[:, 3] = _address(target[array.name]) + array.nbytes * request.order
            self._fetch(table, [array for array, _ in plain], request, target)
            for array, of_array in zip(arrays, files, strict=True):
                if (codec := self.codecs[array.name]) is not None:
                    self._read_encoded(request, array, of_array, codec, target)

    def _locate(self, request: SampleRequest, array: ArrayLayout, files: Sequence[OpenFile], rows: Longs) -> None:
        """Fill all but the addresses of an array's `rows` for `read_ranges`."""
        of_file = self.row(array)
        for file, start, stop in zip(files, request.starts, request.starts[1:], strict=False):
            positions, part = request.positions[start:stop], rows[start:stop]
            part[:, 0] = file.descriptor
            part[:, 1] = file.offsets[of_file, positions]
            part[:, 2] = file.lengths[of_file, positions]
            part[:, 4] = file.sums[of_file, positions] if self.verify else UNCHECKED

    def _fetch(self, table: Longs, arrays: Sequence[ArrayLayout], request: SampleRequest, target: Arrays) -> None:
        """Read the rows of `table`, array by array, each in the request's order; absent ones become the fill."""
        there = table[:, 1] >= 0
        if not there.all():
            for array, missing in zip(arrays, np.split(~there, len(arrays)), strict=True):
                target[array.name][request.order[missing]] = np.dtype(array.dtype).type(array.fill)
        wanted = table[there] if not there.all() else table
        status = read_ranges(wanted, self.threads if wanted[:, 2].sum() >= _THREADED_FROM else 1)
        if status.any():
            bad = int(np.flatnonzero(status)[0])
            number, at = divmod(int(np.flatnonzero(there)[bad]), len(request))
            self._fail(arrays[number], request, at, int(status[bad]))

    def _read_encoded(
        self,
        request: SampleRequest,
        array: ArrayLayout,
        files: Sequence[OpenFile],
        codec: ChunkCodec,
        target: Arrays,
    ) -> None:
        table = _empty_table(len(request))
        self._locate(request, array, files, table)
        ends = np.cumsum(np.where(table[:, 1] >= 0, table[:, 2], 0))
        chunks = np.empty(int(ends[-1]), np.uint8)
        table[:, 3] = _address(chunks) + ends - table[:, 2]
        self._fetch(table, [array], request, target)
        for i in np.flatnonzero(table[:, 1] >= 0).tolist():
            row = target[array.name][request.order[i] : request.order[i] + 1].reshape(-1)
            try:
                codec.decode(chunks[ends[i] - table[i, 2] : ends[i]], row)
            except (RuntimeError, ValueError):
                self._fail(array, request, i, WRONG_SUM)

    def _fail(self, array: ArrayLayout, request: SampleRequest, at: int, status: int) -> None:
        """Raise what went wrong with the request's sorted sample `at`; the file is opened anew next time."""
        block = next(b for b, stop in zip(request.blocks, request.starts[1:], strict=True) if at < stop)
        path = self.data_path(array, *block)
        place = self.location.at(path)
        open_files().drop(place)
        if status not in (CUT, WRONG_SUM):
            raise explain(OSError(status - FAILED, os.strerror(status - FAILED)), place)
        what = f"sample {request.samples[at]} of view {block[0]} is damaged, {reason(status)}"
        raise DamageError(f"{place}: {what}; {REMEDY}")

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        return check_block(self, view, block, records, deep=deep)

    @contextmanager
    def _borrowed(
        self, blocks: Sequence[tuple[int, int]], arrays: Sequence[ArrayLayout]
    ) -> Iterator[list[list[OpenFile]]]:
        """The open files of each array, in the order of `blocks`."""
        paths = {self.location.at(path): path for array in arrays for path in self._paths(array, blocks)}
        files = open_files().borrow(list(paths), lambda missing: self.load([paths[place] for place in missing]))
        by_path = dict(zip(paths.values(), files, strict=True))
        try:
            yield [[by_path[path] for path in self._paths(array, blocks)] for array in arrays]
        finally:
            open_files().give_back(files)

    def _paths(self, array: ArrayLayout, blocks: Sequence[tuple[int, int]]) -> list[str]:
        return [self.data_path(array, view, block) for view, block in blocks]

    def open_natively(
        self, paths: Sequence[str], tails: Sequence[NDArray[np.uint8]], sample_bytes: Sequence[int]
    ) -> Opened:
        """Open files of the column, or their staged copies, and read their checked tails; all or none of them.

        Files whose samples are small are read ahead whole: reading them one by one costs more than their bytes.
        """
        advice = [os.POSIX_FADV_WILLNEED if size < _SMALL else -1 for size in sample_bytes]
        opened = open_tails(self.local_files(paths), tails, advice, threads=_OPEN_AT_ONCE)
        for path, status in zip(paths, opened.status, strict=True):
            if status:
                opened.close()
                raise self._open_failure(path, status)
        return opened

    def local_files(self, paths: Sequence[str]) -> list[str]:
        """Where to open files of the column: themselves, or their staged copies."""
        if not self.location.is_remote:
            return [self.location.at(path) for path in paths]
        try:
            staged = [str(path) for path in self.staging.fetch(self.location, paths)]
        except MissingFileError as error:
            raise DamageError(f"{error}; {REMEDY}") from error
        open_files().drop_unlinked()
        return staged

    def _open_failure(self, path: str, status: int) -> SakError:
        place = self.location.at(path)
        if status < FAILED:
            return DamageError(f"{place}: its index is damaged or cut, so no sample in it can be found; {REMEDY}")
        error = OSError(status - FAILED, os.strerror(status - FAILED))
        if isinstance(error, FileNotFoundError):
            return DamageError(f"{place}: missing, and with it a whole block of samples; {REMEDY}")
        return explain(error, place)


def _empty_table(rows: int) -> Longs:
    return np.empty((rows, 5), np.int64)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


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
