"""Columns as plain zarr v3: any zarr library reads them; the shards are written and read by short code of our own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.block_writer import FilesWriter, Rows
from pipeline.cache.chunk_codecs import chunk_codec
from pipeline.cache.indexed_store import IndexedStore
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.open_files import FileKey, OpenFile
from pipeline.cache.store import REMEDY, BlockWriter, Damage, DamageError
from pipeline.cache.zarr_metadata import check_metadata, shard_path, write_metadata
from pipeline.cache.zarr_shard import SUM_BYTES, ShardWriter, decode_index, index_bytes
from pipeline.storage import Location


class ZarrStore(IndexedStore):
    """See `ColumnStore`: an array for each of the layout's, (view, sample, *shape), a shard for each view and block."""

    def prepare(self, views: int) -> None:
        """See `ColumnStore`."""
        write_metadata(self.location, self.layout, views)

    def check_metadata(self, views: int) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        return check_metadata(self.location, self.layout, views)

    def open_block(self, view: int, block: int) -> BlockWriter:
        """See `ColumnStore`."""
        return _ShardsWriter(self.location, self.layout, view, block)

    def files(self, view: int, block: int) -> tuple[str, ...]:
        """See `ColumnStore`."""
        return tuple(shard_path(array, view, block) for array in self.layout.arrays)

    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """See `IndexedStore`: a shard holds one array."""
        return array.name, 0

    def data_path(self, file: str, view: int, block: int) -> str:
        """See `IndexedStore`."""
        return shard_path(self.layout[file], view, block)

    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """See `IndexedStore`."""
        arrays = [self.layout[name] for _, name, _, _ in keys]
        paths = [shard_path(array, key[2], key[3]) for array, key in zip(arrays, keys, strict=True)]
        tails = [np.empty(index_bytes(self.layout.block), np.uint8) for _ in paths]
        opened = self.opener.open(paths, tails, [array.nbytes for array in arrays])
        try:
            places = [self._places(*each) for each in zip(paths, arrays, opened.sizes, tails, strict=True)]
        except DamageError:
            opened.close()
            raise
        return [OpenFile(*each) for each in zip(keys, opened.descriptors, places, strict=True)]

    def _places(self, path: str, array: ArrayLayout, size: int, tail: NDArray[np.uint8]) -> NDArray[np.int64]:
        plain = chunk_codec(self.layout.codec, array) is None
        try:
            index = decode_index(tail, size, array, plain=plain)
        except ValueError as error:
            raise DamageError(f"{self.location.at(path)}: {error}; {REMEDY}") from error
        return (index - np.array([0, SUM_BYTES]))[None]


class _ShardsWriter(FilesWriter):
    """One block: a shard for each array."""

    def __init__(self, location: Location, layout: ColumnLayout, view: int, block: int) -> None:
        super().__init__(location, layout, view, block)
        self._shards: dict[str, ShardWriter] = {}
        with self.aborting():
            for array in layout.arrays:
                codec = chunk_codec(layout.codec, array)
                path = shard_path(array, view, block)
                shard = ShardWriter(location, path, array, layout.block, codec, self.helpers)
                self._shards[array.name] = shard
                self.files.append(shard.file)

    def write(self, positions: NDArray[np.int64], rows: Rows) -> None:
        """See `FilesWriter`."""
        for name, values in rows.items():
            self._shards[name].append(positions, values)

    def seal(self) -> None:
        """See `FilesWriter`."""
        for shard in self._shards.values():
            shard.seal()
