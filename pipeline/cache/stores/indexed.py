"""What the two stores share: any samples read through cached indices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, ArrayLayout, Arrays, ColumnLayout, ColumnStore, DamageError, allocate
from pipeline.cache.stores.blocks import CheckedStore
from pipeline.cache.stores.files import FileOpener, OpenFile, Staging, open_files
from pipeline.cache.stores.ranges import Bytes, RangeError, Ranges, read_ranges, rows_of
from pipeline.cache.stores.zarr_shard import ChunkCodec, chunk_codec
from pipeline.storage import Location
from pipeline.storage.location import explain
from sak.errors import SakError

# Which samples a read is for: by the files they lie in, and by the columns that hold the parts of a batch.

Longs = NDArray[np.int64]

Contents = Mapping[str, Arrays]  # by teacher

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


@dataclass(frozen=True)
class StoredPart:
    """The wanted arrays of one part of a teacher's column, which lies at `path`."""

    path: str
    store: ColumnStore
    names: tuple[str, ...]

    def read(self, view: int, samples: NDArray[np.int64], out: Arrays | None) -> Arrays:
        """As `ColumnStore.read`; DamageError names the column too."""
        try:
            return self.store.read(view, samples, self.names, out)
        except DamageError as error:
            raise DamageError(f"{self.path}: {error}") from error


@dataclass(frozen=True)
class Piece:
    """Samples of a batch that one part holds, by its own numbers, and their rows of the batch; None is all rows."""

    part: int
    samples: NDArray[np.int64]
    rows: NDArray[np.bool_] | None


Parts = Mapping[str, Sequence[StoredPart]]  # by teacher
Pieces = Mapping[str, Sequence[Piece]]


def read_pieces(parts: Parts, view: int, pieces: Pieces, out: Contents) -> None:
    """Read a batch; DamageError names column, file and sample."""
    for teacher, of_teacher in pieces.items():
        for piece in of_teacher:
            part = parts[teacher][piece.part]
            if piece.rows is None:
                part.read(view, piece.samples, out[teacher])
                continue
            for name, array in part.read(view, piece.samples, None).items():
                out[teacher][name][piece.rows] = array


# An array's file in each block asked for, and its row in it.
ArrayFiles = Sequence[tuple[OpenFile, int]]


@dataclass(frozen=True)
class _Places:
    """Where a request's samples lie: of every place the array's number, the sample's in the sorted request, its file.

    `places` is (places, 2 or 3) as in `OpenFile`. They are in the order in which they lie in the files.
    """

    arrays: Longs
    samples: Longs
    descriptors: Longs
    places: Longs

    @classmethod
    def of(cls, request: SampleRequest, files: Sequence[ArrayFiles], *, together: bool) -> Self:
        """`together` says that a file holds the arrays of each sample together."""
        parts = [request.positions[start:stop] for start, stop in pairwise(request.starts)]
        counts = [len(part) for part in parts]
        places = np.stack(
            [
                np.concatenate([file.places[row][part] for (file, row), part in zip(each, parts, strict=True)])
                for each in files
            ]
        )
        descriptors = np.stack([np.repeat([file.descriptor for file, _ in each], counts) for each in files])
        every: list[NDArray[Any]] = [*np.indices(descriptors.shape), descriptors, places]
        ordered = [part.swapaxes(0, 1) for part in every] if together else every
        return cls(*(each.reshape(-1, *each.shape[2:]) for each in ordered))

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(self.arrays[chosen], self.samples[chosen], self.descriptors[chosen], self.places[chosen])

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.places[:, 0] >= 0

    def ranges(self, memory: Sequence[Bytes]) -> Ranges:
        sums = self.places[:, 2].tolist() if self.places.shape[1] > 2 else None
        return Ranges(self.descriptors.tolist(), self.places[:, 0].tolist(), memory, sums)


class IndexedStore(CheckedStore):
    """The reading side of a `ColumnStore`.

    `staging` takes copies of remote files, and `verify` off skips the checksums of samples: for measurements, never for
    use.
    """

    # Whether a file holds the arrays of each sample together.
    together = False

    def __init__(
        self, location: Location, layout: ColumnLayout, *, staging: Staging | None = None, verify: bool = True
    ) -> None:
        self.location, self.layout = location, layout
        self.opener = FileOpener(location, staging or Staging())
        self.verify = verify

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

    def forget(self) -> None:
        """See `ColumnStore`."""
        open_files().drop(self.location.url)

    def _read_part(self, request: SampleRequest, arrays: Sequence[ArrayLayout], target: Arrays) -> None:
        codecs = [chunk_codec(self.layout.codec, array) for array in arrays]
        with self._borrowed(request.blocks, arrays) as files:
            plain = [number for number, codec in enumerate(codecs) if codec is None]
            if plain:
                self._read_plain(
                    request, [arrays[number] for number in plain], [files[number] for number in plain], target
                )
            for array, codec, of_array in zip(arrays, codecs, files, strict=True):
                if codec is not None:
                    self._read_encoded(request, array, codec, of_array, target)

    def _read_plain(
        self, request: SampleRequest, arrays: Sequence[ArrayLayout], files: Sequence[ArrayFiles], target: Arrays
    ) -> None:
        """Read straight into the results; absent samples become the fill."""
        places = _Places.of(request, files, together=self.together)
        absent = places.where(~places.present)
        for number, sample in zip(absent.arrays.tolist(), absent.samples.tolist(), strict=True):
            target[arrays[number].name][request.order[sample]] = arrays[number].fill
        there = places.where(places.present) if len(absent.arrays) else places
        rows = [list(rows_of(target[array.name])) for array in arrays]
        wanted = zip(there.arrays.tolist(), request.order[there.samples].tolist(), strict=True)
        self._fetch(there, [rows[number][row] for number, row in wanted], arrays, request)

    def _fetch(
        self, places: _Places, memory: Sequence[Bytes], arrays: Sequence[ArrayLayout], request: SampleRequest
    ) -> None:
        try:
            read_ranges(places.ranges(memory), verify=self.verify)
        except RangeError as error:
            number, sample = int(places.arrays[error.row]), int(places.samples[error.row])
            raise self._failure(arrays[number], request, sample, error) from error

    def _read_encoded(
        self, request: SampleRequest, array: ArrayLayout, codec: ChunkCodec, files: ArrayFiles, target: Arrays
    ) -> None:
        places = _Places.of(request, [files], together=self.together)
        target[array.name][request.order[places.samples[~places.present]]] = array.fill
        there = places.where(places.present)
        chunks = [np.empty(length, np.uint8) for length in there.places[:, 1].tolist()]
        self._fetch(there, chunks, [array], request)
        for sample, chunk in zip(there.samples.tolist(), chunks, strict=True):
            row = request.order[sample]
            try:
                codec.decode(chunk, target[array.name][row : row + 1].reshape(-1))
            except (RuntimeError, ValueError) as error:
                wrong = RangeError(sample, "its checksum does not match")
                raise self._failure(array, request, sample, wrong) from error

    def _failure(self, array: ArrayLayout, request: SampleRequest, at: int, error: RangeError) -> SakError:
        """What went wrong with the request's sorted sample `at`; the files are opened anew next time."""
        block = next(block for block, stop in zip(request.blocks, request.starts[1:], strict=True) if at < stop)
        place = self.location.at(self.data_path(self.data_file(array)[0], *block))
        self.forget()
        if error.refused is not None:
            return explain(error.refused, place)
        what = f"sample {request.samples[at]} of view {block[0]} is damaged in {array.name}, {error}"
        return DamageError(f"{place}: {what}; {REMEDY}")

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
