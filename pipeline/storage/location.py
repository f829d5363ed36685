"""`Location`: one folder, local or remote, and everything the project does with the files in it."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sak.errors import SakError

SCRATCH_SUFFIX = ".part"


class StorageError(SakError):
    """A file or folder that cannot be read or written; its line names it and says what to do."""


class MissingFileError(StorageError, FileNotFoundError):
    """A file that should be there is not."""


_REMEDIES = {
    errno.ENOSPC: "no space left; free some or choose another place, then run again: what was finished is kept",
    errno.EDQUOT: "the disk quota is used up; free some or have it raised, then run again: what was finished is kept",
    errno.EACCES: "permission denied; ask its owner for access, or check the group and the credentials",
    errno.EPERM: "operation not permitted; ask its owner for access, or check the group and the credentials",
    errno.EROFS: "the file system is read-only; write to another place and overlay this one (`--cache rw:ro`)",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n 4096`)",
    errno.ENFILE: "the system has too many open files; close other programs",
    errno.EISDIR: "is a folder where a file is wanted; move it away",
    errno.ENOTDIR: "part of the path is a file where a folder is wanted; move it away",
    errno.EEXIST: "a file lies where a folder is wanted; move it away, or give another place",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter path",
}
_LOST = "the store cannot be reached; check the mount, the network and the service, then run again"


def explain(error: BaseException, location: str) -> StorageError:
    """The one line for `error` at a path or URL: what happened and what to do; a missing file keeps its own class."""
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{location}: not there; check the path, or make it again")
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) and number is None:  # as the libraries of object stores raise it
        number = errno.EACCES
    remedy = _REMEDIES.get(number or 0, _LOST)
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return StorageError(f"{location}: {remedy} ({detail})")


@dataclass(frozen=True)
class Entry:
    """A file found by `walk`: its path inside the location, bytes, and seconds since the epoch (None if unknown)."""

    path: str
    bytes: int
    modified: float | None


@dataclass(frozen=True)
class Location(ABC):
    """A folder; every path given to it is relative, `/`-separated, and cannot leave it.

    `url` is an absolute local path or an fsspec URL without a final slash. Settings of remote stores (endpoint,
    credentials) come from fsspec's own configuration and the environment. Holds no connection, so it may be pickled
    and cross a fork. Errors are `StorageError`, a missing file `MissingFileError`.
    """

    url: str

    def __truediv__(self, path: str) -> Self:
        return type(self)(self.at(path))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    def at(self, path: str) -> str:
        """The full path or URL of `path`, for messages; `path` empty is the folder itself.

        Raises StorageError where `path` is absolute, or has empty, `.` or `..` parts.
        """
        if not path:
            return self.url
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise StorageError(f"{self.url}: {path!r} must be a relative path inside this folder; change the name")
        return f"{self.url.rstrip('/')}/{path}"

    @property
    def is_remote(self) -> bool:
        """Whether reaching a file takes the network."""
        return self.local_path() is None

    @abstractmethod
    def exists(self, path: str = "") -> bool:
        """Whether a file or folder is there."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def list(self, path: str = "") -> list[str]:
        """Sorted names of the files and folders in a folder, scratch files left out; empty if it is not there."""

    @abstractmethod
    def walk(self, path: str = "") -> Iterator[Entry]:
        """Every file under a folder, by path, scratch files left out."""

    @abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """The bytes of each (offset, length); StorageError where the file ends before one does."""

    def _complete(self, path: str, ranges: Sequence[tuple[int, int]], parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """`parts`, which must be as long as asked for."""
        for (offset, length), part in zip(ranges, parts, strict=True):
            if len(part) != length:
                raise StorageError(f"{self.at(path)}: ends before byte {offset + length}; it was cut, make it again")
        return parts

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; StorageError where the file ends before."""
        return self.read_ranges(path, [(offset, length)])[0]

    @abstractmethod
    def write_bytes(self, path: str, data: bytes) -> None:
        """Write or replace a file, whole or not at all; makes the folders it needs.

        Local: a scratch file beside it, fsync, rename, fsync of the folder. Remote: one upload, seen when complete.
        """

    @abstractmethod
    def create_exclusive(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, whole; False where somebody was first.

        Local: a hard link of a finished scratch file, atomic on NFS too. Remote: the store's conditional upload
        (S3 `If-None-Match: *`, GCS `ifGenerationMatch=0`); an upload that is repeated after a lost answer finds its
        own bytes and counts as created, so let the data name its writer. Stores without conditional uploads only
        check first.
        """

    @abstractmethod
    def scratch(self, path: str) -> Path:
        """A new local file name to write `path` under before `publish`: in the same folder where that is local."""

    @abstractmethod
    def publish(self, scratch: Path, path: str) -> None:
        """Make a finished local scratch file appear as `path`, durable, and remove the scratch (rename or upload)."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abstractmethod
    def delete_tree(self, path: str) -> None:
        """Remove a folder and all in it; nothing happens where there is none."""

    @abstractmethod
    def remove_scratch(self, older_than: float) -> int:
        """Remove scratch files that dead writers left, not touched for `older_than` seconds; returns their bytes."""

    @abstractmethod
    def local_path(self, path: str = "") -> Path | None:
        """Where a file lies on this machine; None where it is remote."""

    @abstractmethod
    def stage(self, path: str, folder: Path) -> Path:
        """A whole local copy of a remote file in `folder`, made once per version of the file; local files stay put."""

    @abstractmethod
    def free_space(self) -> int | None:
        """Bytes that may still be written here; None where the store does not say."""
