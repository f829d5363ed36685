"""What both stores do: keep one column's encoded arrays in blocks of samples, and give random samples back fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import ColumnLayout
from pipeline.cache.ranges import result_memory
from pipeline.storage import Location
from sak.errors import SakError

Arrays = Mapping[str, NDArray[Any]]

REMEDY = "run `sak-cli cache verify --deep` to see how far it goes and `sak-cli cache repair` to make it again"


FRAME = "frame-sha256:"


class DamageError(SakError):
    """Stored bytes that cannot be what was written: a lost, cut or changed file."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a finished block: path inside the column, bytes, and a digest.

    A store's digest is `frame-sha256:` and the SHA-256 of all bytes but the samples' values: headers, indices, and the
    values' CRC32Cs, each of which answers for its values. (A SHA-256 of everything is slower than the disk; a CRC32C
    of everything would not see exchanged files, since data followed by its own CRC always leaves the same remainder.)
    """

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Damage:
    """One thing wrong with a file, and the sample it strikes where that is known."""

    path: str
    problem: str
    sample: int | None = None


class BlockWriter(Protocol):
    """Writes the samples of one block; nothing of it is seen before `finish`.

    As a context manager it aborts where the body raises, or where it ends without `finish`.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def append(self, positions: Sequence[int] | NDArray[np.integer[Any]], arrays: Arrays) -> None:
        """Add samples by their positions in the block, ascending; every array of the layout, (n, *shape).

        Samples that are never added stay absent. ValueError for a shape, dtype or position that does not fit,
        StorageError where the disk refuses.
        """

    def finish(self) -> tuple[FileRecord, ...]:
        """Make the block's files durable and visible; replaces what an earlier attempt left."""

    def abort(self) -> None:
        """Leave nothing behind."""


class ColumnStore(Protocol):
    """One column on a local folder or a remote one. Safe to share between threads, fork and pickle."""

    location: Location
    layout: ColumnLayout

    def prepare(self, views: int) -> None:
        """Write the metadata for at least `views` views, before any block; more views append, never fewer."""

    def open_block(self, view: int, block: int) -> BlockWriter:
        """A writer for one block of one view."""

    def read(
        self,
        views: int | NDArray[np.integer[Any]],
        samples: Sequence[int] | NDArray[np.integer[Any]],
        names: Sequence[str],
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The arrays `names` of any samples, in the order asked: name -> (n, *shape).

        `views` is one number or one for each sample. Absent samples hold the layout's fill. The bytes go straight
        into `out` where given: C-contiguous arrays of exactly these shapes and dtypes (views of pinned memory too),
        best as `allocate` makes them. Everything is read and checked in the calling thread.
        Raises DamageError naming file and sample, and IndexError for samples or views out of range.
        """

    def read_block(self, view: int, block: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """All samples of a block in order; absent ones hold the fill."""

    def present(self, view: int, block: int) -> NDArray[np.bool_]:
        """Which of the block's samples were written, for every array; DamageError where the files disagree."""

    def files(self, view: int, block: int) -> tuple[str, ...]:
        """Paths inside the column of all files that hold this block."""

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """What is wrong with a block's files, compared with its records; empty where all is well.

        Shallow: existence, sizes and indices. Deep: every byte.
        """

    def check_metadata(self, views: int) -> tuple[Damage, ...]:
        """What is wrong with the files that `prepare` wrote, which must hold at least `views` views."""

    def forget(self) -> None:
        """Close files and drop indices held; the next read opens them again."""


def allocate(layout: ColumnLayout, names: Sequence[str], n: int) -> dict[str, NDArray[Any]]:
    """Buffers for `ColumnStore.read` of `n` samples."""
    return {name: result_memory((n, *layout[name].shape), layout[name].dtype) for name in names}
