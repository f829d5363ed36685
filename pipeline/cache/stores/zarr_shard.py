"""What a zarr v3 shard is made of: chunks of single samples, lossless codecs, and the index behind the chunks.

Each chunk has its CRC32C behind it, and so has the index, (samples of a block, 2) little-endian uint64: offset and
bytes of each chunk, all ones where it is absent. A partial last shard has a full-length index. Large chunks start at
multiples of 64 bytes, zeros between them, as zarr allows: copying out of the page cache from other places takes up to a
fifth longer.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

from pipeline.cache.stores.base import ArrayLayout
from pipeline.cache.stores.ranges import SUM_BYTES
from sak.errors import UsageError, nearest

Longs = NDArray[np.int64]

ABSENT = -1  # all ones, as signed

# A numcodecs codec: `encode(sample)`, `decode(chunk, out)`, `get_config()`.
ChunkCodec = Any


def _blosc(array: ArrayLayout) -> ChunkCodec:
    shuffle = Blosc.BITSHUFFLE if np.dtype(array.dtype).itemsize == 1 else Blosc.SHUFFLE
    return Blosc(cname="zstd", clevel=5, shuffle=shuffle)


def _pcodec(array: ArrayLayout) -> ChunkCodec | None:
    """Pcodec models numbers of 16 bits and more; arrays of bytes lie uncompressed."""
    if np.dtype(array.dtype).itemsize == 1:
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
    """Numcodecs' codec called `name`, with our columns' settings for an array; None where its bytes lie as they are."""
    if name not in _CODECS:
        raise UsageError(f"there is no codec {name!r}{nearest(name, _CODECS)}")
    return _CODECS[name](array)


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
    absent = (offsets == ABSENT) & (lengths == ABSENT)
    inside = (offsets >= 0) & (lengths > SUM_BYTES) & (offsets <= size - len(tail) - lengths)
    fits = (lengths == array.nbytes + SUM_BYTES) if plain else True
    if not np.all(absent | (inside & fits)):
        raise ValueError("its index names places that cannot be")
    return index
