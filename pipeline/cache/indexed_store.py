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
from pipeline.cache.native_calls import ABSENT, CUT, FAILED, WRONG_SUM
from pipeline.cache.native_plan import plan
from pipeline.cache.native_read import read_ranges, reason
from pipeline.cache.open_files import FileKey, OpenFile, open_files
from pipeline.cache.sample_request import SampleRequest
from pipeline.cache.staging import Staging
from pipeline.cache.store import REMEDY, Arrays, Damage, DamageError, FileRecord, allocate
from pipeline.storage import Location
from pipeline.storage.errors import explain

Longs = NDArray[np.int64]
# An array's file in each block asked for, and its row in it.
ArrayFiles = Sequence[tuple[OpenFile, int]]

# Bytes of a request from which several threads pay.
_THREADED_FROM = 8 << 20


class IndexedStore(ABC):
    """The reading side of a `ColumnStore`.

    `staging` takes copies of remote files, `threads` read a large request (by default one less than there are cores, up
    to 4), and `verify` off skips the checksums of samples: for measurements, never for use.
    """

    # Whether a file holds the arrays of each sample together.
    together = False

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
        self.threads = threads or max(1, min(4, len(os.sched_getaffinity(0)) - 1))
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
            there = np.stack([file.places[row, :, 0] >= 0 for ((file, row),) in files])
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
        codecs = [chunk_codec(self.layout.codec, array) for array in arrays]
        with self._borrowed(request.blocks, arrays) as files:
            plain = [number for number, codec in enumerate(codecs) if codec is None]
            if plain:
                wanted = [arrays[number] for number in plain]
                places = [(address(target[array.name]), array.nbytes) for array in wanted]
                ranges = self._plan(request, places, [files[number] for number in plain])
                self._fetch(ranges, wanted, request, target)
            for array, codec, of_array in zip(arrays, codecs, files, strict=True):
                if codec is not None:
                    self._read_encoded(request, array, codec, of_array, target)

    def _plan(self, request: SampleRequest, places: Sequence[tuple[int, int]], files: Sequence[ArrayFiles]) -> Longs:
        return plan(request, places, files, checked=self.verify, together=self.together)

    def _fetch(self, ranges: Longs, arrays: Sequence[ArrayLayout], request: SampleRequest, target: Arrays) -> None:
        """Read what `plan` made; absent samples become the fill."""
        large = len(ranges) > 1 and int(ranges[:, 3].sum()) >= _THREADED_FROM
        status = read_ranges(ranges, self.threads if large else 1)
        if not status.any():
            return
        for row in np.flatnonzero(status).tolist():
            at, number = divmod(row, len(arrays)) if self.together else divmod(row, len(request))[::-1]
            array = arrays[number]
            if status[row] != ABSENT:
                self._fail(array, request, at, int(status[row]))
            target[array.name][request.order[at]] = np.dtype(array.dtype).type(array.fill)

    def _read_encoded(
        self, request: SampleRequest, array: ArrayLayout, codec: ChunkCodec, files: ArrayFiles, target: Arrays
    ) -> None:
        ranges = self._plan(request, [(0, 0)], [files])
        present = ranges[:, 2] >= 0
        ends = np.cumsum(np.where(present, ranges[:, 3], 0))
        chunks = np.empty(int(ends[-1]), np.uint8)
        ranges[:, 1] = address(chunks) + ends - ranges[:, 3]
        self._fetch(ranges, [array], request, target)
        for i in np.flatnonzero(present).tolist():
            sample = target[array.name][request.order[i] : request.order[i] + 1].reshape(-1)
            try:
                codec.decode(chunks[ends[i] - ranges[i, 3] : ends[i]], sample)
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
    def _borrowed(self, blocks: Sequence[tuple[int, int]], arrays: Sequence[ArrayLayout]) -> Iterator[list[ArrayFiles]]:
        """For each array its open files, in the order of `blocks`, and its row in them."""
        url = self.location.url
        found = [self.data_file(array) for array in arrays]
        keys = [[(url, name, *block) for block in blocks] for name, _ in found]
        lent = open_files().borrow([key for of_array in keys for key in of_array], self.load)
        try:
            yield [[(lent[key], row) for key in of_array] for of_array, (_, row) in zip(keys, found, strict=True)]
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
