"""All samples that a cache's columns speak of, numbered once: one data set's, or the union of several by sample key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.sealed import CacheError
from pipeline.images.index import ShardIndex
from sak.errors import UsageError

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Universe:
    """`rows[data]` (N,) gives each sample's number in that data set, -1 where it has none; None where they are equal.

    Samples of the largest data set come first, in its order, then those that only others have.
    """

    indices: Mapping[str, ShardIndex]
    rows: Mapping[str, Numbers | None]
    samples: int

    @classmethod
    def of(cls, indices: Mapping[str, ShardIndex]) -> "Universe":
        """CacheError where two data sets have different images under one key."""
        names = sorted(indices, key=lambda name: (-len(indices[name]), name))
        found = {names[0]: np.arange(len(indices[names[0]]))}
        count = len(indices[names[0]])
        for name in names[1:]:
            numbers = _numbers(indices, found, name)
            new = numbers < 0
            numbers[new] = count + np.arange(int(new.sum()))
            found[name] = numbers
            count += int(new.sum())
        rows = {name: None if _is_plain(each, count) else _inverse(each, count) for name, each in found.items()}
        return cls(dict(indices), rows, count)

    def relocated(self, data: str) -> "Universe":
        """The same samples, their images read from a copy at `data`; UsageError where they are of several sets."""
        if len(self.indices) > 1:
            raise UsageError(
                f"the features are of {len(self.indices)} data sets, {', '.join(self.indices)}, which do not lie in "
                "one place; choose one with data_key= to say where it is"
            )
        return replace(self, indices={name: index.relocated(data) for name, index in self.indices.items()})

    def rows_in(self, data: str, samples: Numbers) -> Numbers:
        """The numbers that samples have in one data set, -1 where they have none."""
        rows = self.rows[data]
        return samples if rows is None else rows[samples]

    def widen(self, data: str, of_rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over one data set (its samples,) as a mask over all (N,)."""
        rows = self.rows[data]
        return of_rows if rows is None else (rows >= 0) & of_rows[rows]

    def image(self, sample: int) -> tuple[ShardIndex, int]:
        """Where a sample's image is: a data set's index, and the sample's number in it."""
        for name, index in self.indices.items():
            row = int(self.rows_in(name, np.asarray([sample]))[0])
            if row >= 0:
                return index, row
        raise IndexError(f"sample {sample} of {self.samples}")

    def key(self, sample: int) -> str:
        """The key of one sample."""
        index, row = self.image(sample)
        return index.key(row)

    def keys(self, samples: Sequence[int] | Numbers) -> list[str]:
        """The keys of some samples."""
        numbers = np.asarray(samples, np.int64)
        if len(self.indices) == 1:
            return next(iter(self.indices.values())).keys(numbers)
        return [self.key(sample) for sample in numbers.tolist()]

    def locate(self, keys: Sequence[str]) -> Numbers:
        """The samples with these keys, -1 for unknown ones."""
        numbers = np.full(len(keys), -1)
        for name, index in self.indices.items():
            rows, found = self.rows[name], index.locate(keys)
            known = (found >= 0) & (numbers < 0)
            numbers[known] = found[known] if rows is None else _inverse(rows, len(index))[found[known]]
        return numbers


def _numbers(indices: Mapping[str, ShardIndex], found: Mapping[str, Numbers], name: str) -> Numbers:
    """The universe's number of each sample of data set `name`; -1 for those no other has had yet."""
    index = indices[name]
    keys = index.keys()
    numbers = np.full(len(index), -1)
    for other, known in found.items():
        rows = indices[other].locate(keys)
        shared = np.flatnonzero(rows >= 0)
        for row in shared.tolist():
            if index.digest(row) != indices[other].digest(int(rows[row])):
                raise CacheError(
                    f"sample {keys[row]!r} has different images in data {name} and {other}; "
                    "read one of them alone with data_key="
                )
        numbers[shared] = known[rows[shared]]
    return numbers


def _is_plain(numbers: Numbers, count: int) -> bool:
    return len(numbers) == count and bool((numbers == np.arange(count)).all())


def _inverse(numbers: Numbers, count: int) -> Numbers:
    """`inverse[numbers[i]] == i`, -1 elsewhere."""
    inverse = np.full(count, -1)
    known = np.flatnonzero(numbers >= 0)
    inverse[numbers[known]] = known
    return inverse
