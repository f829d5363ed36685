"""The shard index: where every image of a data set lies, and what it is, without unpacking anything."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.images.index_file import Columns, IndexHeader, Rows, read_index, write_index
from pipeline.images.source import ImageSource, ShardError, StaleIndexError, find_images
from pipeline.storage import open_location


@dataclass(frozen=True)
class ByteRange:
    """Where an image's bytes lie: `size` of them from `offset` in `file`, a path below the index's root."""

    file: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """One past its last byte in the file."""
        return self.offset + self.size


class ShardIndex:
    """N samples of a data set, in an order that depends on names alone.

    `data` is where it was found (absolute path, URL or pattern), `shards` the names of the tars or folders below
    `root`, sorted. Made by `build_index`, kept by `save`, opened again by `open` through a memory map. Nothing changes
    after it is made; threads and processes may share it. Pickled by its file's path where it was opened from one.
    """

    def __init__(self, columns: Columns, header: IndexHeader) -> None:
        self.columns, self.header = columns, header
        self.data, self.kind, self.root = header.data, header.kind, open_location(header.root)
        self.shards, self.stamps, self.suffixes = header.shards, header.stamps, header.suffixes
        self.saved: tuple[str, int] | None = None

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"ShardIndex({len(self)} samples in {len(self.shards)} shards of {self.data})"

    def key(self, sample: int) -> str:
        """The key of one sample."""
        return self.columns.key(self._checked(sample))

    def keys(self, samples: ArrayLike | None = None) -> list[str]:
        """The keys of some samples, or of all."""
        if samples is None:
            return self.columns.keys()
        return [self.key(row) for row in np.asarray(samples, np.int64).reshape(-1).tolist()]

    def label(self, sample: int) -> int:
        """The class number; -1 where the data has none."""
        return int(self.columns.label[self._checked(sample)])

    @property
    def labels(self) -> NDArray[np.int32]:
        """All class numbers, (N,), -1 for none."""
        return self.columns.label

    def digest(self, sample: int) -> bytes:
        """SHA-256 of the image's bytes, 32 of them."""
        return self.columns.digest[self._checked(sample)].tobytes()

    def byte_range(self, sample: int) -> ByteRange:
        """Where the image of one sample lies: in its tar, or a file of its own."""
        columns, row = self.columns, self._checked(sample)
        if self.kind == "tars":
            file = self.shards[int(columns.shard[row])]
        else:
            file = columns.key(row) + self.suffixes[int(columns.suffix[row])]
        return ByteRange(file, int(columns.offset[row]), int(columns.size[row]))

    def find(self, key: str) -> int:
        """The number of the sample with this key; ShardError where there is none."""
        row = self.columns.find(key)
        if row is None:
            raise ShardError(f"{self.data}: no sample {key!r} among {len(self)}; is it the data the key comes from?")
        return row

    def locate(self, keys: Iterable[str]) -> Rows:
        """The number of each key's sample, (n,); -1 for unknown keys."""
        rows = (self.columns.find(key) for key in keys)
        return np.fromiter((-1 if row is None else row for row in rows), np.int64)

    def subset(self, samples: ArrayLike) -> "ShardIndex":
        """These samples alone, in this order; each at most once."""
        rows = np.asarray(samples, np.int64).reshape(-1)
        if len(np.unique(rows)) != len(rows) or (len(rows) and not 0 <= rows.min() <= rows.max() < len(self)):
            raise ValueError(f"a subset takes different sample numbers from 0 to {len(self) - 1}")
        return ShardIndex(self.columns.take(rows), self.header)

    def limit(self, count: int) -> "ShardIndex":
        """The first `count` samples; the index itself where it has no more."""
        return self if count >= len(self) else self.subset(np.arange(max(0, count)))

    def data_key(self) -> str:
        r"""SHA-256, hex, of the ordered (sample key, image SHA-256).

        Of `sak data key 1\0`, the number of samples (8 bytes), the end of each key in the bytes of all keys (8 bytes
        each), those bytes, and the 32 bytes of each image's digest, integers little-endian.
        """
        return self._data_key

    @cached_property
    def _data_key(self) -> str:
        return self.columns.data_key()

    def save(self, path: Path | str) -> None:
        """Write the index as one file, whole or not at all; a local path or an fsspec URL."""
        write_index(path, self.header, self.columns)

    @classmethod
    def open(cls, path: Path | str) -> "ShardIndex":
        """Open a saved index, its checksum proved; IndexFileError where it is damaged, cut, or newer than this code."""
        header, columns, checksum = read_index(path)
        opened = cls(columns, header)
        opened.saved = (str(path), checksum)
        return opened

    def __reduce__(self) -> tuple[object, ...]:
        return (ShardIndex, (self.columns, self.header)) if self.saved is None else (_reopen, self.saved)

    def relocated(self, data: str) -> "ShardIndex":
        """The same samples, read from a copy of the data at `data`; times of change are no longer compared.

        StaleIndexError where the copy's shards have other names or sizes.
        """
        source = find_images(data)
        stamps = tuple(replace(stamp, modified=None) for stamp in self.stamps)
        moved = ShardIndex(self.columns, replace(self.header, data=source.data, root=source.root.url, stamps=stamps))
        moved._compare(source)
        return moved

    def check_shards(self) -> None:
        """Compare names, sizes and times of change with what is there; StaleIndexError names the first difference."""
        self._compare(find_images(self.data))

    def _compare(self, source: ImageSource) -> None:
        remedy = f"index {source.data} again, or bring the data back"
        if source.shards != self.shards:
            name = sorted(set(source.shards).symmetric_difference(self.shards))[0]
            state = "is new" if name in source.shards else "is gone"
            raise StaleIndexError(f"{self.root}: {name or '.'} {state} since it was indexed; {remedy}")
        for name, then, now in zip(self.shards, self.stamps, source.stamps, strict=True):
            if then.bytes != now.bytes:
                change = f"had {then.bytes} bytes when it was indexed and has {now.bytes}"
            elif None not in (then.modified, now.modified) and then.modified != now.modified:
                change = "was written since it was indexed"
            else:
                continue
            raise StaleIndexError(f"{self.root}: {name or '.'} {change}; {remedy}")

    def _checked(self, sample: int) -> int:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return sample


def _reopen(path: str, checksum: int) -> ShardIndex:
    index = ShardIndex.open(path)
    if index.saved != (path, checksum):
        raise StaleIndexError(f"{path}: another index took its place while it was in use; start again")
    return index
