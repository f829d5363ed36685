"""The columns of a shard index: what is known of each sample, as arrays that open without being parsed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

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


@dataclass(frozen=True, eq=False)
class Columns:
    """N samples. `hashes` ascend and `order` names the sample of each, so that a key is found by bisection.

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
        place = int(np.searchsorted(self.hashes, np.uint64(value)))
        while place < len(self) and int(self.hashes[place]) == value:
            row = int(self.order[place])
            if self.key(row) == key:
                return row
            place += 1
        return None

    def take(self, rows: Rows) -> "Columns":
        """Some samples, in the order given; each at most once."""
        places = np.full(len(self), -1, np.int32)
        places[rows] = np.arange(len(rows), dtype=np.int32)
        order = places[self.order]
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
    hashes = np.frombuffer(b"".join(sha256(key.encode()).digest()[:8] for key in keys), ">u8").astype(np.uint64)
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[order], order


def join_keys(keys: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(bytes of all keys, where each ends)."""
    encoded = [key.encode() for key in keys]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def column_names() -> tuple[str, ...]:
    """All columns, in the order in which they lie in a file."""
    return tuple(each.name for each in fields(Columns))
