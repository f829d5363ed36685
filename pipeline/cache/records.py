"""Block records: one JSON a (view, block), written last. A block without one is not there, whatever its files hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as default
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.manifest import field, seal, unseal
from pipeline.cache.stores.base import DamageError, FileRecord

Ranges = tuple[tuple[int, int], ...]


def record_name(view: int, block: int) -> str:
    """The name that a block's record, views and lease share: `v000-b000012`."""
    return f"v{view:03d}-b{block:06d}"


def parse_record_name(name: str) -> tuple[int, int] | None:
    """(view, block) of a record's name; None where it is not one."""
    view, _, block = name.partition("-")
    if not (view[:1] == "v" and block[:1] == "b" and view[1:].isdecimal() and block[1:].isdecimal()):
        return None
    found = int(view[1:]), int(block[1:])
    return found if record_name(*found) == name else None


def to_ranges(samples: "Iterable[int] | NDArray[np.int64]") -> Ranges:
    """Ascending sample numbers as half-open ranges."""
    numbers = np.asarray(list(samples), np.int64)
    if not len(numbers):
        return ()
    ends = np.flatnonzero(np.diff(numbers) != 1)
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [len(numbers) - 1]])
    return tuple((int(numbers[a]), int(numbers[b]) + 1) for a, b in zip(starts, stops, strict=True))


def from_ranges(ranges: Ranges) -> NDArray[np.int64]:
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
    present: Ranges
    files: tuple[FileRecord, ...]
    views: FileRecord | None
    calibration: str | None
    absent: tuple[Absent, ...] = ()
    elsewhere: Ranges = ()
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
        open_ = np.ones(len(samples), bool)
        for start, stop in (*self.present, *self.elsewhere, *((each.sample, each.sample + 1) for each in self.absent)):
            open_[max(0, start - samples.start) : max(0, stop - samples.start)] = False
        return not open_.any()

    def to_bytes(self) -> bytes:
        """The record as it lies on disk."""
        return seal(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> "BlockRecord":
        """The record in `data`, read from `place`; DamageError where a byte of it changed."""
        read = unseal(data, place)
        try:
            return cls(
                view=int(read["view"]),
                block=int(read["block"]),
                present=_ranges(read["present"]),
                files=tuple(FileRecord(**file) for file in read["files"]),
                views=FileRecord(**read["views"]) if read["views"] else None,
                calibration=read["calibration"],
                absent=tuple(Absent(**each) for each in read["absent"]),
                elsewhere=_ranges(read["elsewhere"]),
                fidelity=field(read, "fidelity", dict, place),
                facts=field(read, "facts", dict, place),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise DamageError(f"{place}: not a block record ({error!r}); see `sak-cli cache verify`") from error


def _ranges(read: Sequence[Sequence[int]]) -> Ranges:
    return tuple((int(start), int(stop)) for start, stop in read)
