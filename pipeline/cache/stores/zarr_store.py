"""Columns as plain zarr v3: zarr makes and checks their `zarr.json`; the shards are written and read by our own code.

Every `zarr.json` is sealed: its attribute `crc32c` is the checksum of the rest as JSON with sorted keys, so that no
changed byte of it passes. What it says is compared as zarr understands it, since versions of zarr word it differently.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, ArrayLayout, BlockWriter, ColumnLayout, Damage, DamageError
from pipeline.cache.stores.blocks import FilesWriter, Rows
from pipeline.cache.stores.files import FileKey, OpenFile
from pipeline.cache.stores.indexed import IndexedStore
from pipeline.cache.stores.zarr_shard import SUM_BYTES, ShardWriter, chunk_codec, decode_index, index_bytes
from pipeline.storage import Location, MissingFileError

FILE = "zarr.json"


def shard_path(array: ArrayLayout, view: int, block: int) -> str:
    """The file of a block's shard: one folder an array, not one a block."""
    return f"{array.name}/c.{view}.{block}" + ".0" * len(array.shape)


class ZarrStore(IndexedStore):
    """See `ColumnStore`: an array for each of the layout's, (view, sample, *shape), a shard for each view and block."""

    def prepare(self, views: int) -> None:
        """See `ColumnStore`. Writes what is missing; DamageError where the column there has other arrays."""
        documents = column_documents(self.layout, views)
        there = {path: self._stored_views(path, document) for path, document in documents.items()}
        for path, document in documents.items():
            # Another writer may have been first, and for more views.
            if there[path] < views and not self.location.create_exclusive(path, document) and there[path]:
                self.location.write_bytes(path, document)

    def _stored_views(self, path: str, document: bytes) -> float:
        """For how many views a document like `document` is there; 0 where none is."""
        try:
            return views_held(self.location.read_bytes(path), document)
        except MissingFileError:
            return 0
        except ValueError as error:
            raise DamageError(f"{self.location.at(path)}: {error}; {REMEDY}") from error

    def check_metadata(self, views: int) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        found = []
        for path, document in column_documents(self.layout, views).items():
            try:
                if views_held(self.location.read_bytes(path), document) < views:
                    found.append(Damage(path, "made for fewer views than there are"))
            except MissingFileError:
                found.append(Damage(path, "missing"))
            except ValueError as error:
                found.append(Damage(path, str(error)))
        return tuple(found)

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


@lru_cache(maxsize=64)
def column_documents(layout: ColumnLayout, views: int) -> Mapping[str, bytes]:
    """Every `zarr.json` of a column with so many views, by its path: a group per level, an array for each part."""
    import zarr
    from zarr.abc.buffer import Buffer

    made: dict[str, Buffer] = {}
    root = zarr.create_group(zarr.storage.MemoryStore(made), zarr_format=3)
    for array in layout.arrays:
        with _quiet():
            root.create_array(
                array.name,
                shape=(views, layout.samples, *array.shape),
                shards=(1, layout.block, *array.shape),
                chunks=(1, 1, *array.shape),
                dtype=array.dtype,
                fill_value=array.fill,
                filters=None,
                chunk_key_encoding={"name": "default", "configuration": {"separator": "."}},
                **_chunk_codecs(layout.codec, array),
            )
    return {path: _sealed(json.loads(document.to_bytes())) for path, document in made.items()}


def _chunk_codecs(name: str, array: ArrayLayout) -> dict[str, Any]:
    """What `create_array` is told of a chunk's way to bytes: the lossless codec by its own settings, then CRC32C."""
    codec, checksum = chunk_codec(name, array), {"name": "crc32c"}
    if codec is None:
        return {"compressors": [checksum]}
    # Zarr picks blosc's shuffle by the size of a number, as `chunk_codec` does.
    settings = {key: value for key, value in codec.get_config().items() if key not in ("id", "shuffle")}
    if name == "pcodec":
        serializer = {"name": "numcodecs.pcodec", "configuration": settings}
        return {"serializer": serializer, "compressors": [checksum]}
    return {"compressors": [{"name": name, "configuration": settings}, checksum]}


def views_held(stored: bytes, wanted: bytes) -> float:
    """For how many views a stored document holds, any number where it is a group's.

    ValueError where its seal is broken, or where it says something else than `wanted`, which is of any number of views.
    """
    meaning, views = _meaning(stored)
    if meaning != _meaning(wanted)[0]:
        raise ValueError("not what was written for this column")
    return views


@lru_cache(maxsize=1024)
def _meaning(document: bytes) -> tuple[Mapping[str, Any], float]:
    """What zarr understands of a sealed document, without the number of views; and that number."""
    import zarr
    from zarr.buffer.cpu import Buffer

    try:
        if _sealed(json.loads(document)) != document:
            raise ValueError("its seal is broken")
        with _quiet():
            node = zarr.open(zarr.storage.MemoryStore({FILE: Buffer.from_bytes(document)}), mode="r", zarr_format=3)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("changed since it was written") from error
    meaning = {**node.metadata.to_dict(), "attributes": None}
    views, *shape = meaning.pop("shape", (math.inf,))
    return {**meaning, "shape": shape}, views


def _sealed(document: Mapping[str, Any]) -> bytes:
    plain = {name: value for name, value in document.items() if name != "attributes"}
    checksum = google_crc32c.value(json.dumps(plain, sort_keys=True).encode())
    sealed = {**plain, "attributes": {"crc32c": f"{checksum:08x}"}}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without zarr's word at every pcodec array that this codec stands in no specification."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")
        yield
