"""Columns as webdataset: a tar for each view and block, with an index of offsets beside it.

Members are `<key>.<view>.<level>.<array>.npy`. Any `webdataset.WebDataset` reads the tars, samples in order; we read
values straight out of them. The index is (samples of a block, arrays, 3) little-endian int64: offset and bytes of the
values, -1 where absent, and their CRC32C; behind it stands its own CRC32C.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, ArrayLayout, Arrays, ColumnLayout, Damage, DamageError
from pipeline.cache.stores.blocks import BlockFile, ColumnStore, FilesWriter
from pipeline.cache.stores.files import FileKey, OpenFile, Staging
from pipeline.cache.stores.ranges import SUM_BYTES, Bytes, rows_of
from pipeline.cache.stores.zarr_shard import encode_index
from pipeline.storage import Location
from sak.errors import UsageError

if TYPE_CHECKING:
    from webdataset import FluidWrapper

Longs = NDArray[np.int64]

BLOCK = 512
END = bytes(2 * BLOCK)
_LONGEST_NAME = 100
_CHECKSUM = slice(148, 156)


def tar_path(view: int, block: int) -> str:
    """The tar of a block."""
    return f"v{view:03d}-b{block:06d}.tar"


def index_path(tar: str) -> str:
    """The index beside a tar."""
    return f"{tar}.idx"


def safe_key(key: str) -> str:
    """The key as members' names have it: what is not a letter, digit, `_`, `-` or inner `/` is %-escaped.

    So a name has no dot before the view's (webdataset ends the key at the first), and none leaves the folder it is
    unpacked in. `urllib.parse.unquote` gives the key back.
    """
    parts = key.split("/")
    separator = "/" if all(parts) else "%2F"
    return separator.join(quote(part, safe="").replace(".", "%2E").replace("~", "%7E") for part in parts)


def npy_header(array: ArrayLayout) -> bytes:
    """What stands before the values of one sample in a .npy file."""
    header, sample = io.BytesIO(), np.empty(array.shape, array.dtype)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(sample))
    return header.getvalue()


class MemberHeaders:
    """Tar and .npy headers of one array's members, which differ in name and checksum alone.

    `tarfile` makes them once; from then on both fields are filled in, in a tenth of its time.
    """

    def __init__(self, array: ArrayLayout, view: int) -> None:
        self._suffix = f".{view}.{array.name.replace('/', '.')}.npy"
        self._npy = npy_header(array)
        self.bytes = len(self._npy) + array.nbytes
        self.padding = -self.bytes % BLOCK
        template = self._info("").tobuf(tarfile.GNU_FORMAT)
        self._rest = template[_LONGEST_NAME : _CHECKSUM.start], template[_CHECKSUM.stop :]
        # The checksum counts its own field as eight spaces.
        self._sum = sum(template) - sum(template[_CHECKSUM]) + 8 * ord(" ")

    def _info(self, name: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size, info.mode = self.bytes, 0o644
        return info

    def of(self, key: str) -> bytes:
        """All that stands before the values of the sample with a `safe_key`."""
        name = (key + self._suffix).encode()
        if len(name) > _LONGEST_NAME:
            return self._info(name.decode()).tobuf(tarfile.GNU_FORMAT) + self._npy
        checksum = b"%06o\0 " % (self._sum + sum(name))
        return name.ljust(_LONGEST_NAME, b"\0") + self._rest[0] + checksum + self._rest[1] + self._npy


class TarStore(ColumnStore):
    """A column as tars. `key` names a sample by its number; reading does without."""

    together = True

    def __init__(
        self,
        location: Location,
        layout: ColumnLayout,
        key: Callable[[int], str] | None = None,
        *,
        staging: Staging | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__(location, layout, staging=staging, verify=verify)
        if layout.codec != "none":
            raise UsageError(f"webdataset columns hold plain values, codec {layout.codec!r} goes with format zarr")
        self.key = key
        self._rows = {array.name: row for row, array in enumerate(layout.arrays)}

    def prepare(self, views: int) -> None:
        """Nothing: a tar says by itself what it holds."""

    def check_metadata(self, views: int) -> tuple[Damage, ...]:
        """Nothing is wrong with what is not there."""
        del views
        return ()

    def open_block(self, view: int, block: int) -> FilesWriter:
        """A writer for one block of one view."""
        if self.key is None:
            raise ValueError("writing a tar takes the samples' keys")
        return _TarWriter(self.location, self.layout, self.key, view, block)

    def files(self, view: int, block: int) -> tuple[str, ...]:
        """Paths of a block's files, inside the column."""
        return tar_path(view, block), index_path(tar_path(view, block))

    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """One tar holds all arrays."""
        return "", self._rows[array.name]

    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of a block's data file."""
        return tar_path(view, block) + file

    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """Open data files, with their indices read and checked."""
        size = 24 * self.layout.block * len(self.layout.arrays) + SUM_BYTES
        paths = [tar_path(view, block) for _, _, view, block in keys]
        tails = [np.empty(0, np.uint8) for _ in paths] + [np.empty(size, np.uint8) for _ in paths]
        indices = [index_path(path) for path in paths]
        with self.opener.open(paths + indices, tails, [self.layout.nbytes] * len(tails)) as opened:
            sizes = zip(paths, opened.sizes[: len(paths)], opened.sizes[len(paths) :], tails[len(paths) :], strict=True)
            places = [self._places(*of_block) for of_block in sizes]
        for descriptor in opened.descriptors[len(paths) :]:
            os.close(descriptor)
        return [OpenFile(*file) for file in zip(keys, opened.descriptors[: len(paths)], places, strict=True)]

    def _places(self, path: str, size: int, index_size: int, tail: NDArray[np.uint8]) -> Longs:
        index = tail[:-SUM_BYTES].view("<i8").reshape(self.layout.block, len(self.layout.arrays), 3)
        nbytes = np.array([array.nbytes for array in self.layout.arrays])
        absent = (index == -1).all(-1)
        fits = (index[..., 0] >= BLOCK) & (index[..., 1] == nbytes) & (index[..., 2] >= 0)
        if not np.all(absent | fits) or index_size != len(tail):
            raise DamageError(f"{self.location.at(index_path(path))}: its index names places that cannot be; {REMEDY}")
        end = -(-int((index[..., 0] + index[..., 1]).max(initial=0)) // BLOCK) * BLOCK + len(END)
        if end != size:
            raise DamageError(f"{self.location.at(path)}: {size} bytes, its index counts {end}; {REMEDY}")
        return np.ascontiguousarray(index.transpose(1, 0, 2))


class _TarWriter(FilesWriter):
    """One block: a tar and its index."""

    def __init__(
        self, location: Location, layout: ColumnLayout, key: Callable[[int], str], view: int, block: int
    ) -> None:
        super().__init__(location, layout, view, block)
        self._key, self._first = key, layout.block_samples(block).start
        self._headers = [MemberHeaders(array, view) for array in layout.arrays]
        self._index = np.full((layout.block, len(layout.arrays), 3), -1, np.int64)
        with self.aborting():
            for path in (tar_path(view, block), index_path(tar_path(view, block))):
                self.files.append(BlockFile(location, path, self.helpers))

    def write(self, positions: Longs, rows: Arrays) -> None:
        """Append checked samples, one by one, the arrays of each together."""
        keys = [safe_key(self._key(self._first + position)) for position in positions.tolist()]
        self.files[0].append(self._members(positions.tolist(), keys, [rows_of(values) for values in rows.values()]))

    def _members(
        self, positions: Sequence[int], keys: Sequence[str], arrays: Sequence[Bytes]
    ) -> Iterator[Bytes | bytes]:
        tar = self.files[0]
        at = tar.bytes
        for row, (position, key) in enumerate(zip(positions, keys, strict=True)):
            for column, (header, array) in enumerate(zip(self._headers, arrays, strict=True)):
                head, values, padding = header.of(key), array[row], bytes(header.padding)
                self._index[position, column] = at + len(head), len(values), google_crc32c.value(values)
                at += len(head) + len(values) + len(padding)
                tar.frame(head + padding)
                yield from (head, values, padding)

    def seal(self) -> None:
        """Append what stands at the end of the files."""
        self.files[0].append_frame(END)
        self.files[1].append_frame(encode_index(self._index))


def tar_samples(location: Location, layout: ColumnLayout, view: int, blocks: Iterable[int]) -> "FluidWrapper":
    """A webdataset of the samples of some blocks of a view, in order; see `Column.webdataset`."""
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    tars = webdataset.SimpleShardList([location.at(tar_path(view, block)) for block in blocks])
    names = {array.name: f"{view}.{array.name.replace('/', '.')}.npy" for array in layout.arrays}
    stages = webdataset.split_by_worker, _opened, tar_file_expander, group_by_keys, partial(_decoded, names)
    return webdataset.FluidWrapper(tars).compose(*stages)


def _opened(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Webdataset's own opener leaves files to the collector, and reads remote ones through commands."""
    import fsspec

    for source in sources:
        with fsspec.open(source["url"]) as stream:
            yield {**source, "stream": stream}


def _decoded(names: Mapping[str, str], samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Webdataset's own decoding would load pickles, too."""
    for sample in samples:
        arrays = {name: np.lib.format.read_array(io.BytesIO(sample[member])) for name, member in names.items()}
        yield {"__key__": unquote(sample["__key__"]), **arrays}
