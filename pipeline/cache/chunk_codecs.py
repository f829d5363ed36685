"""Lossless codecs of single samples' chunks, as zarr's metadata names them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

from pipeline.cache.layout import ArrayLayout
from sak.errors import UsageError, nearest

Encoded = bytes | bytearray | NDArray[Any]


@dataclass(frozen=True)
class ChunkCodec:
    """`metadata` stands in the shard's inner codecs before crc32c; `encode` takes a sample, `decode` fills one."""

    metadata: tuple[Mapping[str, Any], ...]
    encode: Callable[[NDArray[Any]], Encoded]
    decode: Callable[[NDArray[np.uint8], NDArray[Any]], None]


def bytes_codec(array: ArrayLayout) -> Mapping[str, Any]:
    """Zarr's codec of plain numbers; the byte order is named where there is one."""
    if np.dtype(array.dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _zstd(array: ArrayLayout) -> ChunkCodec:
    codec = Zstd(level=3)
    step = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    return ChunkCodec((bytes_codec(array), step), codec.encode, _into(codec.decode))


def _blosc(array: ArrayLayout) -> ChunkCodec:
    size = np.dtype(array.dtype).itemsize
    shuffle = "bitshuffle" if size == 1 else "shuffle"
    codec = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE if size == 1 else Blosc.SHUFFLE)
    configuration = {"typesize": size, "cname": "zstd", "clevel": 5, "shuffle": shuffle, "blocksize": 0}
    step = {"name": "blosc", "configuration": configuration}
    return ChunkCodec((bytes_codec(array), step), codec.encode, _into(codec.decode))


def _pcodec(array: ArrayLayout) -> ChunkCodec | None:
    """Pcodec models numbers of 16 bits and more; arrays of bytes lie uncompressed."""
    if np.dtype(array.dtype).itemsize == 1:
        return None
    from numcodecs.pcodec import PCodec

    codec = PCodec()
    configuration = {name: value for name, value in codec.get_config().items() if name != "id"}
    step = {"name": "numcodecs.pcodec", "configuration": configuration}
    return ChunkCodec((step,), codec.encode, _into(codec.decode))


def _into(decode: Callable[..., Any]) -> Callable[[NDArray[np.uint8], NDArray[Any]], None]:
    def fill(encoded: NDArray[np.uint8], sample: NDArray[Any]) -> None:
        decode(encoded, out=sample)

    return fill


_CODECS: dict[str, Callable[[ArrayLayout], ChunkCodec | None]] = {
    "none": lambda _: None,
    "zstd": _zstd,
    "blosc": _blosc,
    "pcodec": _pcodec,
}


@lru_cache(maxsize=256)
def chunk_codec(name: str, array: ArrayLayout) -> ChunkCodec | None:
    """The codec called `name` for an array; None where its bytes lie as they are."""
    if name not in _CODECS:
        raise UsageError(f"there is no codec {name!r}{nearest(name, _CODECS)}")
    return _CODECS[name](array)
