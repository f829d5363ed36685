"""The file of a shard index: a preamble, a JSON header, then the columns, which open through a memory map unparsed.

Preamble of 32 bytes, little-endian: magic, schema, length of the header, length of the file, CRC32C of the header,
CRC32C of these 28 bytes. The header names each column's place in the body, which starts at the next multiple of 64,
and holds the body's CRC32C. The preamble keeps its form in all schemas, so a newer file is told from a damaged one.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.images.source import DamagedIndexError, IndexFileError, Kind, Stamp
from pipeline.storage import Location, StorageError, open_location
from pipeline.storage.location import explain

Rows = NDArray[np.int64]

SCHEMA = 1

_MAGIC = b"SAKINDEX"
_PREAMBLE = struct.Struct("<8sIIQI")
_START = _PREAMBLE.size + 4  # the preamble's own checksum
_ALIGN = 64
_ROWS_AT_ONCE = 1 << 16
_PER_SAMPLE = ("shard", "suffix", "offset", "size", "label", "digest")

DTYPES = {
    "key_bytes": np.uint8,
    "key_ends": np.int64,
    "shard": np.int32,
    "suffix": np.uint16,
    "offset": np.int64,
    "size": np.int64,
    "label": np.int32,
    "digest": np.uint8,
    "hashes": np.uint64,
    "order": np.int32,
}
"""Of the columns, in the order in which they lie in a file."""


@dataclass(frozen=True, eq=False)
class Columns:
    """What is known of N samples, as arrays that open without being parsed.

    `hashes` ascend and `order` names the sample of each, so that a key is found by bisection.

    `key_bytes` (bytes of all keys, UTF-8, one after the other), `key_ends` (N,), `shard`, `suffix`, `offset`, `size`,
    `label` (N,) with -1 for none, `digest` (N, 32) SHA-256 of each image, `hashes` and `order` (N,).
    """

    key_bytes: NDArray[np.uint8]
    key_ends: NDArray[np.int64]
    shard: NDArray[np.int32]
    suffix: NDArray[np.uint16]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int32]
    digest: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    order: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, row: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[row - 1]) if row else 0
        return self.key_bytes[start : int(self.key_ends[row])].tobytes().decode()

    def keys(self) -> list[str]:
        """All keys."""
        text, ends = self.key_bytes.tobytes(), self.key_ends.tolist()
        return [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def find(self, key: str) -> int | None:
        """The sample with this key."""
        value = key_hash(key)
        position = int(np.searchsorted(self.hashes, np.uint64(value)))
        while position < len(self) and int(self.hashes[position]) == value:  # keys may share a hash
            row = int(self.order[position])
            if self.key(row) == key:
                return row
            position += 1
        return None

    def take(self, rows: Rows) -> "Columns":
        """Some samples, in the order given; each at most once."""
        new_rows = np.full(len(self), -1, np.int32)
        new_rows[rows] = np.arange(len(rows), dtype=np.int32)
        order = new_rows[self.order]
        kept = order >= 0
        key_bytes, key_ends = self._take_keys(rows)
        per_sample = {name: getattr(self, name)[rows] for name in _PER_SAMPLE}
        return Columns(key_bytes, key_ends, hashes=self.hashes[kept], order=order[kept], **per_sample)

    def _take_keys(self, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """A part of the rows at a time: the positions of single bytes are eight times as many."""
        parts = [np.empty(0, np.uint8)]
        starts = np.concatenate((np.zeros(1, np.int64), self.key_ends[:-1]))[rows]
        lengths = self.key_ends[rows] - starts
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            start, length = starts[first : first + _ROWS_AT_ONCE], lengths[first : first + _ROWS_AT_ONCE]
            ends = np.cumsum(length)
            parts.append(self.key_bytes[np.repeat(start - (ends - length), length) + np.arange(ends[-1])])
        return np.concatenate(parts), np.cumsum(lengths)

    def data_key(self) -> str:
        """See `ShardIndex.data_key`."""
        digest = sha256(b"sak data key 1\0" + len(self).to_bytes(8, "little"))
        for column in (self.key_ends.astype("<i8", copy=False), self.key_bytes, self.digest):
            digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def key_hash(key: str) -> int:
    """The first 64 bits of the key's SHA-256, so that ascending hashes are ascending SHA-256."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big")


def hash_keys(keys: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """(hashes ascending, the number of the key each belongs to)."""
    hashes = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[order], order


def join_keys(keys: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(bytes of all keys, where each ends)."""
    encoded = [key.encode() for key in keys]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return np.frombuffer(b"".join(encoded), np.uint8), ends


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
    """Write the file beside its final name, then rename it (or upload it, to a URL)."""
    body, lies = _packed(columns)
    body_crc = google_crc32c.value(np.frombuffer(body, np.uint8))
    about = {**asdict(header), "columns": lies, "body_bytes": len(body), "body_crc32c": body_crc}
    text = json.dumps(about, sort_keys=True).encode()
    text += b" " * (-(_START + len(text)) % _ALIGN)
    preamble = _PREAMBLE.pack(_MAGIC, SCHEMA, len(text), _START + len(text) + len(body), google_crc32c.value(text))
    folder, name = _split(path)
    scratch = folder.scratch(name)
    try:
        with scratch.open("wb") as file:
            file.write(preamble + _checksum(preamble) + text)
            file.write(body)
        folder.publish(scratch, name)
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def _packed(columns: Columns) -> tuple[bytearray, dict[str, dict[str, Any]]]:
    """(the columns' bytes, where each lies in them)."""
    lies: dict[str, dict[str, Any]] = {}
    body = bytearray()
    for name, dtype in DTYPES.items():
        array = np.ascontiguousarray(getattr(columns, name), dtype)
        lies[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": len(body)}
        body += array.reshape(-1).view(np.uint8).data
        body += bytes(-len(body) % _ALIGN)
    return body, lies


def read_index(path: Path | str) -> tuple[IndexHeader, Columns, int]:
    """(header, columns, checksum of the whole); IndexFileError with one line where the file cannot be trusted."""
    file = _map(path)
    if len(file) < _START or file[:8].tobytes() != _MAGIC:
        raise DamagedIndexError(f"{path}: not a shard index; build it from the shards")
    preamble = file[: _PREAMBLE.size].tobytes()
    _, schema, header_length, length, header_crc = _PREAMBLE.unpack(preamble)
    if file[_PREAMBLE.size : _START].tobytes() != _checksum(preamble):
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
    lies, body_bytes, body_crc = (raw[name] for name in ("columns", "body_bytes", "body_crc32c"))
    if len(body) != body_bytes or google_crc32c.value(body) != body_crc:
        raise _damaged(path, "its columns do not match their checksum")
    arrays = {
        name: np.ndarray(lies[name]["shape"], lies[name]["dtype"], body.data, lies[name]["offset"]) for name in DTYPES
    }
    return _header(raw), Columns(**arrays), body_crc ^ header_crc


def _checksum(preamble: bytes) -> bytes:
    return google_crc32c.value(preamble).to_bytes(4, "little")


def _map(path: Path | str) -> NDArray[np.uint8]:
    folder, name = _split(path)
    local = folder.local_path(name)
    if local is None:
        return np.frombuffer(folder.read_bytes(name), np.uint8)
    if not folder.size(name):
        raise _damaged(path, "it is empty")
    try:
        return np.asarray(np.memmap(local, np.uint8, "r"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be mapped into memory ({error}); check the file system") from error


def _header(raw: dict[str, Any]) -> IndexHeader:
    stamps = tuple(Stamp(stamp["bytes"], stamp["modified"]) for stamp in raw["stamps"])
    return IndexHeader(raw["data"], raw["kind"], raw["root"], tuple(raw["shards"]), stamps, tuple(raw["suffixes"]))


def _damaged(path: Path | str, what: str) -> DamagedIndexError:
    return DamagedIndexError(f"{path}: damaged: {what}; `sak-cli extract` with the same images makes it again")


def _split(path: Path | str) -> tuple[Location, str]:
    """(folder, name) of a file."""
    file = open_location(str(path))
    return open_location(file.url[: -len(file.name) - 1] or "/"), file.name
