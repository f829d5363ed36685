"""One zarr v3 shard: chunks of single samples, each with its CRC32C, and behind them the index with its own.

The index is (samples of a block, 2) little-endian uint64: offset and bytes of each chunk, all ones where it is absent.
A partial last shard has a full-length index. Large chunks start at multiples of 64 bytes, zeros between them, as zarr
allows: copying out of the page cache from other places takes up to a fifth longer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

from pipeline.cache.stores.base import ArrayLayout
from pipeline.cache.stores.blocks import BlockFile
from pipeline.cache.stores.ranges import Bytes, rows_of
from pipeline.storage import Location
from sak.errors import UsageError, nearest

# Lossless codecs of single samples' chunks: numcodecs' own, with the settings that our columns have.

# A numcodecs codec: `encode(sample)`, `decode(chunk, out)`, `get_config()`.
ChunkCodec = Any


def _itemsize(array: ArrayLayout) -> int:
    return np.dtype(array.dtype).itemsize


def _blosc(array: ArrayLayout) -> ChunkCodec:
    return Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE if _itemsize(array) == 1 else Blosc.SHUFFLE)


def _pcodec(array: ArrayLayout) -> ChunkCodec | None:
    """Pcodec models numbers of 16 bits and more; arrays of bytes lie uncompressed."""
    if _itemsize(array) == 1:
        return None
    from numcodecs.pcodec import PCodec

    return PCodec()


_CODECS: dict[str, Callable[[ArrayLayout], ChunkCodec | None]] = {
    "none": lambda _: None,
    "zstd": lambda _: Zstd(level=3),
    "blosc": _blosc,
    "pcodec": _pcodec,
}


@lru_cache(maxsize=256)
def chunk_codec(name: str, array: ArrayLayout) -> ChunkCodec | None:
    """The codec called `name` for an array; None where its bytes lie as they are."""
    if name not in _CODECS:
        raise UsageError(f"there is no codec {name!r}{nearest(name, _CODECS)}")
    return _CODECS[name](array)


Longs = NDArray[np.int64]

SUM_BYTES = 4
_ABSENT = -1  # all ones, as signed
_ALIGNMENT, _ALIGNED_FROM = 64, 4096


def index_bytes(block: int) -> int:
    """Bytes of a shard's index, its checksum included."""
    return 16 * block + SUM_BYTES


def encode_index(index: Longs) -> bytes:
    """An index as it stands at a file's end: little-endian, its CRC32C behind it."""
    data = index.astype("<i8").tobytes()
    return data + google_crc32c.value(data).to_bytes(SUM_BYTES, "little")


def decode_index(tail: NDArray[np.uint8], size: int, array: ArrayLayout, *, plain: bool) -> Longs:
    """(block, 2) offsets and bytes of the chunks in a shard of `size` bytes; ValueError where they cannot be so."""
    index = tail[:-SUM_BYTES].view("<i8").reshape(-1, 2)
    offsets, lengths = index[:, 0], index[:, 1]
    absent = (offsets == _ABSENT) & (lengths == _ABSENT)
    inside = (offsets >= 0) & (lengths > SUM_BYTES) & (offsets <= size - len(tail) - lengths)
    fits = (lengths == array.nbytes + SUM_BYTES) if plain else True
    if not np.all(absent | (inside & fits)):
        raise ValueError("its index names places that cannot be")
    return index


class ShardWriter:
    """Appends the samples of one array and block, in the order given."""

    def __init__(
        self, location: Location, path: str, array: ArrayLayout, block: int, codec: ChunkCodec | None, helpers: Executor
    ) -> None:
        self.file = BlockFile(location, path, helpers)
        self._nbytes, self._codec = array.nbytes, codec
        self._alignment = _ALIGNMENT if array.nbytes >= _ALIGNED_FROM else 1
        self._helpers = helpers
        self._index = np.full((block, 2), _ABSENT, np.int64)

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
