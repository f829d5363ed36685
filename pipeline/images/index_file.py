"""The file of a shard index: a preamble, a JSON header, then the columns, ready to be mapped into memory.

Preamble of 32 bytes, little-endian: magic, schema, length of the header, length of the file, CRC32C of the header,
CRC32C of these 28 bytes. The header names each column's place in the body, which starts at the next multiple of 64,
and holds the body's CRC32C. The preamble keeps its form in all schemas, so a newer file is told from a damaged one.
"""

import json
import struct
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.images.columns import DTYPES, Columns, column_names
from pipeline.images.errors import DamagedIndexError, IndexFileError
from pipeline.images.source import Kind, Stamp
from pipeline.storage import Location, StorageError
from pipeline.storage.errors import explain

SCHEMA = 1

_MAGIC = b"SAKINDEX"
_PREAMBLE = struct.Struct("<8sIIQI")
_CHECK = struct.Struct("<I")
_START = _PREAMBLE.size + _CHECK.size
_ALIGN = 64


@dataclass(frozen=True)
class IndexHeader:
    """What the file says beside its columns."""

    data: str
    kind: Kind
    root: str
    shards: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    suffixes: tuple[str, ...]


def write_index(path: Path | str, header: IndexHeader, columns: Columns) -> None:
    """Write the file beside its place, then rename it (or upload it, to a URL)."""
    arrays = {name: np.ascontiguousarray(getattr(columns, name), DTYPES[name]) for name in column_names()}
    places: dict[str, dict[str, Any]] = {}
    length = 0
    for name, array in arrays.items():
        places[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": length}
        length = _aligned(length + array.nbytes)
    body = np.zeros(length, np.uint8)
    for name, array in arrays.items():
        start = places[name]["offset"]
        body[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    lies = {"columns": places, "body_bytes": length, "body_crc32c": google_crc32c.value(body)}
    text = json.dumps(asdict(header) | lies, sort_keys=True).encode()
    text += b" " * (_aligned(_START + len(text)) - _START - len(text))
    preamble = _PREAMBLE.pack(_MAGIC, SCHEMA, len(text), _START + len(text) + length, google_crc32c.value(text))
    folder, name = _place(path)
    scratch = folder.scratch(name)
    try:
        with scratch.open("wb") as file:
            file.write(preamble + _CHECK.pack(google_crc32c.value(preamble)) + text)
            file.write(body.data)
        folder.publish(scratch, name)
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def read_index(path: Path | str) -> tuple[IndexHeader, Columns, int]:
    """(header, columns, checksum of the whole); IndexFileError with one line where the file cannot be trusted."""
    file = _map(path)
    if len(file) < _START or file[:8].tobytes() != _MAGIC:
        raise DamagedIndexError(f"{path}: not a shard index; build it from the shards")
    preamble = file[: _PREAMBLE.size].tobytes()
    _, schema, header_length, length, header_crc = _PREAMBLE.unpack(preamble)
    if _CHECK.unpack(file[_PREAMBLE.size : _START].tobytes())[0] != google_crc32c.value(preamble):
        raise _damaged(path, "its first bytes do not match their checksum")
    if schema > SCHEMA:
        raise IndexFileError(
            f"{path}: written with schema {schema}, this version reads up to {SCHEMA}; upgrade, or rebuild"
        )
    if length != len(file):
        raise _damaged(path, f"{len(file)} bytes, {length} were written")
    text = file[_START : _START + header_length].tobytes()
    body = file[_START + header_length :]
    if google_crc32c.value(text) != header_crc:
        raise _damaged(path, "its header does not match its checksum")
    raw = json.loads(text)
    if len(body) != raw["body_bytes"] or google_crc32c.value(np.asarray(body)) != raw["body_crc32c"]:
        raise _damaged(path, "its columns do not match their checksum")
    return _header(raw), _columns(raw["columns"], body), raw["body_crc32c"] ^ header_crc


def _map(path: Path | str) -> NDArray[np.uint8]:
    folder, name = _place(path)
    local = folder.local_path(name)
    if local is None:
        return np.frombuffer(folder.read_bytes(name), np.uint8)
    if not folder.size(name):
        raise _damaged(path, "it is empty")
    try:
        return np.memmap(local, np.uint8, "r")
    except OSError as error:
        raise StorageError(f"{path}: cannot be mapped into memory ({error}); check the file system") from error


def _header(raw: dict[str, Any]) -> IndexHeader:
    stamps = tuple(Stamp(each["bytes"], each["modified"]) for each in raw["stamps"])
    return IndexHeader(raw["data"], raw["kind"], raw["root"], tuple(raw["shards"]), stamps, tuple(raw["suffixes"]))


def _columns(places: dict[str, dict[str, Any]], body: NDArray[np.uint8]) -> Columns:
    def column(name: str) -> NDArray[Any]:
        place = places[name]
        dtype, shape = np.dtype(place["dtype"]), place["shape"]
        bytes_ = body[place["offset"] : place["offset"] + dtype.itemsize * prod(shape)]
        return np.asarray(bytes_).view(dtype).reshape(shape)

    return Columns(**{name: column(name) for name in column_names()})


def _damaged(path: Path | str, what: str) -> DamagedIndexError:
    return DamagedIndexError(f"{path}: damaged: {what}; `sak-cli extract` with the same images makes it again")


def _place(path: Path | str) -> tuple[Location, str]:
    whole = Location.parse(str(path))
    return Location.parse(whole.url[: -len(whole.name) - 1] or "/"), whole.name


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN
