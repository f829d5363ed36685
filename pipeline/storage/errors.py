"""Storage failures as one line that names the place and the remedy."""

import errno

from sak.errors import SakError


class StorageError(SakError):
    """A place that cannot be read or written; its line names the place and what to do."""


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


def explain(error: BaseException, place: str) -> StorageError:
    """The one line for `error` at `place`: what happened and what to do; a missing file keeps its own class."""
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{place}: not there; check the path, or make it again")
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) and number is None:
        number = errno.EACCES
    remedy = _REMEDIES.get(number, _LOST) if number is not None else _LOST
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return StorageError(f"{place}: {remedy} ({detail})")
