"""How both stores read any samples: sorted by the files they lie in, and found there by the files' indices."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, ArrayLayout, Arrays, ColumnLayout, DamageError, allocate
from pipeline.cache.stores.files import FileKey, FileOpener, OpenFile, Staging, open_files
from pipeline.cache.stores.ranges import Bytes, RangeError, Ranges, read_ranges, rows_of
from pipeline.cache.stores.zarr_shard import ChunkCodec, chunk_codec
from pipeline.storage import Location
from pipeline.storage.location import explain
from sak.errors import SakError

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
                np.concatenate([file.places[row][part] for (file, row), part in zip(of_array, parts, strict=True)])
                for of_array in files
            ]
        )
        descriptors = np.stack([np.repeat([file.descriptor for file, _ in of_array], counts) for of_array in files])
        every: list[NDArray[Any]] = [*np.indices(descriptors.shape), descriptors, places]
        ordered = [part.swapaxes(0, 1) for part in every] if together else every
        return cls(*(part.reshape(-1, *part.shape[2:]) for part in ordered))

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(self.arrays[chosen], self.samples[chosen], self.descriptors[chosen], self.places[chosen])

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.places[:, 0] >= 0

    def ranges(self, memory: Sequence[Bytes]) -> Ranges:
        sums = self.places[:, 2].tolist() if self.places.shape[1] > 2 else None
        return Ranges(self.descriptors.tolist(), self.places[:, 0].tolist(), memory, sums)


class IndexedStore(ABC):
    """The reading side of a store.

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

    @abstractmethod
    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """What names the file with an array, among those of a block, and which of the arrays in it it is."""

    @abstractmethod
    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of the file that `data_file` names."""

    @abstractmethod
    def files(self, view: int, block: int) -> tuple[str, ...]:
        """Paths inside the column of all files of a block."""

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
        """The arrays `names` of any samples, in the order asked: name -> (n, *shape).

        `views` is one number or one for each sample. Absent samples hold the layout's fill. The bytes go straight
        into `out` where given: C-contiguous arrays of exactly these shapes and dtypes (views of pinned memory too),
        best as `allocate` makes them. Everything is read and checked in the calling thread.
        Raises DamageError naming file and sample, and IndexError for samples or views out of range.
        """
        request = SampleRequest.of(self.layout, views, samples)
        arrays = [self.layout[name] for name in names]
        target = allocate(self.layout, names, len(request)) if out is None else _checked_out(arrays, len(request), out)
        if len(request) and arrays:
            for part in request.parts(max(1, open_files().capacity // len(arrays))):
                self._read_part(part, arrays, target)
        return target

    def present(self, view: int, block: int) -> NDArray[np.bool_]:
        """Which of a block's samples were written; DamageError where its arrays hold different ones."""
        count = len(self.layout.block_samples(block))
        with self._borrowed([(view, block)], self.layout.arrays) as files:
            there = np.stack([file.places[row, :, 0] >= 0 for ((file, row),) in files])
        if np.any(there != there[0]) or np.any(there[0, count:]):
            path = self.location.at(self.files(view, block)[0])
            raise DamageError(f"{path}: the arrays of this block hold different samples; {REMEDY}")
        return there[0, :count].copy()

    def forget(self) -> None:
        """Close the files of this column and drop their indices."""
        open_files().drop(lambda file: file.key[0] == self.location.url)

    def _read_part(self, request: SampleRequest, arrays: Sequence[ArrayLayout], target: Arrays) -> None:
        """Read plain values straight into the results, and decode the others; absent samples become the fill."""
        codecs = [chunk_codec(self.layout.codec, array) for array in arrays]
        with self._borrowed(request.blocks, arrays) as files:
            places = _Places.of(request, files, together=self.together)
            absent = places.where(~places.present)
            for number, sample in zip(absent.arrays.tolist(), absent.samples.tolist(), strict=True):
                target[arrays[number].name][request.order[sample]] = arrays[number].fill
            there = places.where(places.present) if len(absent.arrays) else places
            rows = [list(rows_of(target[array.name])) for array in arrays]
            of_place = zip(there.arrays.tolist(), request.order[there.samples].tolist(), strict=True)
            results = [rows[number][row] for number, row in of_place]
            encoded = [at for at, number in enumerate(there.arrays.tolist()) if codecs[number] is not None]
            chunks = {at: np.empty(there.places[at, 1], np.uint8) for at in encoded}
            memory = [chunks.get(at, result) for at, result in enumerate(results)] if chunks else results
            try:
                read_ranges(there.ranges(memory), verify=self.verify)
                for at, chunk in chunks.items():
                    number = there.arrays[at]
                    _decode(codecs[number], chunk, results[at].view(arrays[number].dtype), at)
            except RangeError as error:
                array = arrays[there.arrays[error.row]]
                raise self._failure(array, request, int(there.samples[error.row]), error) from error

    def _failure(self, array: ArrayLayout, request: SampleRequest, at: int, error: RangeError) -> SakError:
        """What went wrong with the request's sorted sample `at`; the files are opened anew next time."""
        block = next(block for block, stop in zip(request.blocks, request.starts[1:], strict=True) if at < stop)
        where = self.location.at(self.data_path(self.data_file(array)[0], *block))
        self.forget()
        if error.refused is not None:
            return explain(error.refused, where)
        what = f"sample {request.samples[at]} of view {block[0]} is damaged in {array.name}, {error}"
        return DamageError(f"{where}: {what}; {REMEDY}")

    @contextmanager
    def _borrowed(self, blocks: Sequence[tuple[int, int]], arrays: Sequence[ArrayLayout]) -> Iterator[list[ArrayFiles]]:
        """For each array its open files, in the order of `blocks`, and its row in them."""
        url = self.location.url
        data_files = [self.data_file(array) for array in arrays]
        keys = [[(url, name, *block) for block in blocks] for name, _ in data_files]
        lent = open_files().borrow([key for of_array in keys for key in of_array], self.load)
        try:
            yield [[(lent[key], row) for key in of_array] for of_array, (_, row) in zip(keys, data_files, strict=True)]
        finally:
            open_files().give_back(lent.values())


def _decode(codec: ChunkCodec, chunk: Bytes, result: NDArray[Any], row: int) -> None:
    """Decode a chunk into the memory of its sample; RangeError where it is not what was encoded."""
    try:
        codec.decode(chunk, result)
    except (RuntimeError, ValueError) as error:
        raise RangeError(row, "its checksum does not match") from error


def _checked_out(arrays: Sequence[ArrayLayout], n: int, out: Arrays) -> dict[str, NDArray[Any]]:
    for array in arrays:
        given = out.get(array.name)
        if given is None or given.shape != (n, *array.shape) or given.dtype != np.dtype(array.dtype):
            got = "nothing" if given is None else f"{given.dtype} {given.shape}"
            raise ValueError(f"out[{array.name!r}] must be {array.dtype} {(n, *array.shape)}, got {got}")
        if not (given.flags.c_contiguous and given.flags.writeable):
            raise ValueError(f"out[{array.name!r}] must be contiguous and writeable")
    return {array.name: out[array.name] for array in arrays}
