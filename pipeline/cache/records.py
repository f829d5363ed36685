"""A block's record: a JSON for each (view, block), written last. A block without one is not there."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as default
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.manifest import field, seal, unseal
from pipeline.cache.stores.base import DamageError, FileRecord
from pipeline.storage import Location

SampleRanges = tuple[tuple[int, int], ...]


def record_name(view: int, block: int) -> str:
    """The name that a block's record, views and lease share: `v000-b000012`."""
    return f"v{view:03d}-b{block:06d}"


def parse_record_name(name: str) -> tuple[int, int] | None:
    """(view, block) of a record's name; None where it is not one."""
    match = re.fullmatch(r"v(\d+)-b(\d+)", name)
    numbers = (int(match[1]), int(match[2])) if match else None
    return numbers if numbers and record_name(*numbers) == name else None


def to_ranges(samples: "Iterable[int] | NDArray[np.int64]") -> SampleRanges:
    """Ascending sample numbers as half-open ranges."""
    numbers = np.asarray(list(samples), np.int64)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return tuple((int(run[0]), int(run[-1]) + 1) for run in runs if len(run))


def from_ranges(ranges: SampleRanges) -> NDArray[np.int64]:
    """The sample numbers in half-open ranges."""
    return np.concatenate([np.arange(start, stop) for start, stop in ranges] or [np.empty(0, np.int64)])


def file_record(path: str, data: bytes) -> FileRecord:
    """The record of a file that holds `data`, by SHA-256."""
    return FileRecord(path, len(data), f"sha256:{sha256(data).hexdigest()}")


@dataclass(frozen=True)
class Absent:
    """A sample of a block that has no features, and why: a bad image in quarantine."""

    sample: int
    key: str
    reason: str


@dataclass(frozen=True)
class BlockRecord:
    """One block of one view of a column, done.

    `present` are the sample numbers whose features lie here, `absent` those that cannot have any, `elsewhere` those
    left to the column of another data key. Samples of the block in none of the three were not attempted. `files` are
    the store's, by their paths inside the store; `views` is the file of boxes, flips and pixel CRCs, by its path inside
    the column. `fidelity` holds, by level, the sums that `LevelFidelity` reads; `facts` say how the block came about
    (seconds, device, versions, batch size).
    """

    view: int
    block: int
    present: SampleRanges
    files: tuple[FileRecord, ...]
    views: FileRecord | None
    calibration: str | None
    absent: tuple[Absent, ...] = ()
    elsewhere: SampleRanges = ()
    fidelity: Mapping[str, Any] = default(default_factory=dict)
    facts: Mapping[str, Any] = default(default_factory=dict)

    @property
    def name(self) -> str:
        """`v000-b000012`."""
        return record_name(self.view, self.block)

    @property
    def samples(self) -> NDArray[np.int64]:
        """The sample numbers that are present, ascending."""
        return from_ranges(self.present)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files) + (self.views.bytes if self.views else 0)

    def covers(self, samples: range) -> bool:
        """Whether all of `samples` were attempted: present, absent for good, or left to another column."""
        missing = np.ones(len(samples), bool)
        for start, stop in (*self.present, *self.elsewhere, *((bad.sample, bad.sample + 1) for bad in self.absent)):
            missing[max(0, start - samples.start) : max(0, stop - samples.start)] = False
        return not missing.any()

    def to_bytes(self) -> bytes:
        """The record as it lies on disk."""
        return seal(asdict(self))

    def write(self, column: Location) -> bool:
        """Write it into a column's folder, the last of a block's files; False where another writer was first."""
        return column.create_exclusive(f"records/{self.name}.json", self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "BlockRecord":
        """The record in `data`, read from `where`; DamageError where a byte of it changed."""
        read = unseal(data, where)
        try:
            return cls(
                view=int(read["view"]),
                block=int(read["block"]),
                present=_ranges(read["present"]),
                files=tuple(FileRecord(**file) for file in read["files"]),
                views=FileRecord(**read["views"]) if read["views"] else None,
                calibration=read["calibration"],
                absent=tuple(Absent(**sample) for sample in read["absent"]),
                elsewhere=_ranges(read["elsewhere"]),
                fidelity=field(read, "fidelity", dict, where),
                facts=field(read, "facts", dict, where),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise DamageError(f"{where}: not a block record ({error!r}); see `sak-cli cache verify`") from error


def _ranges(read: Sequence[Sequence[int]]) -> SampleRanges:
    return tuple((int(start), int(stop)) for start, stop in read)
