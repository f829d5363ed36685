"""Columns as plain zarr v3: zarr makes and checks their `zarr.json`; the shards are written and read by our own code.

Every `zarr.json` is sealed: its attribute `crc32c` is the checksum of the rest as JSON with sorted keys, so that no
changed byte of it passes. What it says is compared as zarr understands it, since versions of zarr word it differently.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, ArrayLayout, Arrays, ColumnLayout, Damage, DamageError
from pipeline.cache.stores.blocks import BlockFile, ColumnStore, FilesWriter
from pipeline.cache.stores.files import FileKey, OpenFile
from pipeline.cache.stores.ranges import SUM_BYTES, Bytes, rows_of
from pipeline.cache.stores.zarr_shard import (
    ABSENT,
    ChunkCodec,
    Longs,
    chunk_codec,
    decode_index,
    encode_index,
    index_bytes,
)
from pipeline.storage import Location, MissingFileError

FILE = "zarr.json"
_ALIGNMENT, _ALIGNED_FROM = 64, 4096  # chunks start at multiples of 64 bytes, those of so many bytes and more


def shard_path(array: ArrayLayout, view: int, block: int) -> str:
    """The file of a block's shard: one folder an array, not one a block."""
    return f"{array.name}/c.{view}.{block}" + ".0" * len(array.shape)


class ZarrStore(ColumnStore):
    """A column as zarr: an array for each of the layout's, (view, sample, *shape), a shard for each view and block."""

    def prepare(self, views: int) -> None:
        """Write what `zarr.json` files are missing; DamageError where the column there has other arrays."""
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
        """What is wrong with the `zarr.json` files, which must be made for at least `views` views."""
        damages = []
        for path, document in column_documents(self.layout, views).items():
            try:
                if views_held(self.location.read_bytes(path), document) < views:
                    damages.append(Damage(path, "made for fewer views than there are"))
            except MissingFileError:
                damages.append(Damage(path, "missing"))
            except ValueError as error:
                damages.append(Damage(path, str(error)))
        return tuple(damages)

    def open_block(self, view: int, block: int) -> FilesWriter:
        """A writer for one block of one view."""
        return _ShardsWriter(self.location, self.layout, view, block)

    def files(self, view: int, block: int) -> tuple[str, ...]:
        """Paths of a block's files, inside the column."""
        return tuple(shard_path(array, view, block) for array in self.layout.arrays)

    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """A shard holds one array."""
        return array.name, 0

    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of a block's data file."""
        return shard_path(self.layout[file], view, block)

    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """Open data files, with their indices read and checked."""
        arrays = [self.layout[name] for _, name, _, _ in keys]
        paths = [shard_path(array, key[2], key[3]) for array, key in zip(arrays, keys, strict=True)]
        tails = [np.empty(index_bytes(self.layout.block), np.uint8) for _ in paths]
        with self.opener.open(paths, tails, [array.nbytes for array in arrays]) as opened:
            places = [self._places(*shard) for shard in zip(paths, arrays, opened.sizes, tails, strict=True)]
        return [OpenFile(*file) for file in zip(keys, opened.descriptors, places, strict=True)]

    def _places(self, path: str, array: ArrayLayout, size: int, tail: Bytes) -> Longs:
        plain = chunk_codec(self.layout.codec, array) is None
        try:
            index = decode_index(tail, size, array, plain=plain)
        except ValueError as error:
            raise DamageError(f"{self.location.at(path)}: {error}; {REMEDY}") from error
        return (index - np.array([0, SUM_BYTES]))[None]


class ShardWriter:
    """Appends the samples of one array and block, in the order given."""

    def __init__(
        self, location: Location, path: str, array: ArrayLayout, block: int, codec: ChunkCodec | None, helpers: Executor
    ) -> None:
        self.file = BlockFile(location, path, helpers)
        self._nbytes, self._codec = array.nbytes, codec
        self._alignment = _ALIGNMENT if array.nbytes >= _ALIGNED_FROM else 1
        self._helpers = helpers
        self._index = np.full((block, 2), ABSENT, np.int64)

    def append(self, positions: Longs, rows: NDArray[Any]) -> None:
        """Add samples (n, *shape), C-contiguous, at their positions in the block; zeros are written like all else."""
        if self._codec is None:
            self._append(positions, list(rows_of(rows)))
        else:
            chunks = self._helpers.map(self._codec.encode, rows)
            self._append(positions, [np.frombuffer(chunk, np.uint8) for chunk in chunks])

    def _append(self, positions: Longs, chunks: Sequence[Bytes]) -> None:
        lengths = np.array([len(chunk) for chunk in chunks], np.int64)
        padding = -(lengths + SUM_BYTES) % self._alignment
        start = self.file.bytes
        self.file.append(self._framed(chunks, padding.tolist()))
        ends = start + np.cumsum(lengths + SUM_BYTES + padding)
        self._index[positions, 0] = ends - padding - SUM_BYTES - lengths
        self._index[positions, 1] = lengths + SUM_BYTES

    def _framed(self, chunks: Sequence[Bytes], padding: Sequence[int]) -> Iterator[Bytes | bytes]:
        """Each chunk, summed when the file asks for it, and what stands behind it."""
        for chunk, zeros in zip(chunks, padding, strict=True):
            behind = google_crc32c.value(chunk).to_bytes(SUM_BYTES, "little") + bytes(zeros)
            self.file.frame(behind)
            yield chunk
            yield behind

    def seal(self) -> None:
        """Append the index."""
        self.file.append_frame(encode_index(self._index))


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

    def write(self, positions: Longs, rows: Arrays) -> None:
        """Append checked samples to the shard of each array."""
        for name, values in rows.items():
            self._shards[name].append(positions, values)

    def seal(self) -> None:
        """Append what stands at the end of the files."""
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
    """Arguments of `create_array` for a chunk's way to bytes: the lossless codec with its own settings, then CRC32C."""
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
    """Without zarr's warning, at every pcodec array, that this codec is in no specification."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")
        yield
