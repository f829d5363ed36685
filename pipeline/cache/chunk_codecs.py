"""Lossless codecs of single samples' chunks: numcodecs' own, with the settings that our columns have."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numcodecs import Blosc, Zstd

from pipeline.cache.layout import ArrayLayout
from sak.errors import UsageError, nearest

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
