"""Opening a column's files: a process's open files and their indices, and local copies of remote files.

The number of open files is bounded, and none is used across a fork. Remote files are copied whole, once, into a bounded
local folder, instead of being read sample by sample.
"""

import os
import resource
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from pipeline.cache.stores.base import REMEDY, DamageError
from pipeline.cache.stores.ranges import SUM_BYTES, Bytes, read_fully
from pipeline.storage import Location, MissingFileError
from pipeline.storage.location import explain

_AT_ONCE = 8  # files that are downloaded or opened
_SMALL = 32 << 10  # bytes of a sample below which its file is read ahead whole

Longs = NDArray[np.int64]

# URL of the column's folder, which of a block's files, view, block.
FileKey = tuple[str, str, int, int]


@dataclass(eq=False)
class OpenFile:
    """A file to read ranges of.

    `places` is (arrays in the file, samples of a block, 2 or 3): offset, -1 where absent, length, and the CRC32C where
    that does not stand in the file behind the range.
    """

    key: FileKey
    descriptor: int
    places: Longs
    users: int = 0
    dropped: bool = False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class OpenFiles:
    """The files used last, open. Those lent out stay open until given back, so no read meets a closed descriptor."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[FileKey, OpenFile] = OrderedDict()

    def _after_fork(self) -> None:
        """In a new process: close its copies of the parent's descriptors; its lock may have been held."""
        if self._process != os.getpid():
            for file in self._files.values():
                file.close()
            self._reset()

    def __len__(self) -> int:
        return len(self._files)

    def borrow(
        self, keys: Sequence[FileKey], load: Callable[[list[FileKey]], list[OpenFile]]
    ) -> dict[FileKey, OpenFile]:
        """The files called `keys`, opened by `load` where they are not yet; give every one back."""
        self._after_fork()
        with self._lock:
            lent = {key: file for key in keys if (file := self._files.get(key)) is not None}
            for key, file in lent.items():
                file.users += 1
                self._files.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in lent]
        if missing:
            try:
                loaded = load(missing)
            except BaseException:
                self.give_back(lent.values())
                raise
            lent.update((file.key, file) for file in self._keep(loaded))
        return lent

    def _keep(self, loaded: Iterable[OpenFile]) -> list[OpenFile]:
        """Take newly opened files in, lent once; where another thread was faster, its file instead."""
        kept = []
        with self._lock:
            for new in loaded:
                file = self._files.setdefault(new.key, new)
                if file is not new:
                    new.close()
                file.users += 1
                kept.append(file)
            surplus = max(0, len(self._files) - self.capacity)
            for file in [file for file in self._files.values() if not file.users][:surplus]:
                self._close(file)
        return kept

    def give_back(self, files: Iterable[OpenFile]) -> None:
        """End the loan of what one call of `borrow` returned."""
        with self._lock:
            for file in files:
                file.users -= 1
                if file.dropped and not file.users:
                    file.close()

    def drop(self, which: Callable[[OpenFile], bool]) -> None:
        """Close those files, the ones being read once they are given back."""
        self._after_fork()
        with self._lock:
            for file in [file for file in self._files.values() if which(file)]:
                self._close(file)

    def _close(self, file: OpenFile) -> None:
        del self._files[file.key]
        file.dropped = True
        if not file.users:
            file.close()


@lru_cache(maxsize=1)
def open_files() -> OpenFiles:
    """This process's open files: half as many as it may have, at most 4,096; raises the soft limit to have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return OpenFiles(max(16, min(4096, (8192 if soft == resource.RLIM_INFINITY else soft) // 2)))


def _default_folder() -> Path:
    return Path(os.environ.get("SAK_STAGING", Path(tempfile.gettempdir()) / f"sak-staging-{os.getuid()}"))


@dataclass(frozen=True)
class Staging:
    """Local copies of remote files in `folder` (SAK_STAGING, or one in the temporary folder), up to `limit` bytes.

    Processes may share a folder. Beyond the limit the copies used longest ago go first; those of the request at hand
    stay, so one request larger than the limit may exceed it.
    """

    folder: Path = field(default_factory=_default_folder)
    limit: int = 64 * 10**9

    def fetch(self, location: Location, paths: Sequence[str]) -> list[Path]:
        """Local copies of remote files, downloaded where they are not there yet, several at once."""
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(paths)))) as pool:
            files = list(pool.map(lambda path: location.stage(path, self.folder), paths))
        for file in files:
            with suppress(FileNotFoundError):
                os.utime(file)
        self._shrink(keep=set(files))
        return files

    def _shrink(self, keep: set[Path]) -> None:
        copies: list[tuple[float, int, Path]] = []
        for file in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                status = file.stat()
                copies.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in copies)
        for _, size, file in sorted(copies):
            if total <= self.limit:
                return
            if file not in keep:
                file.unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True)
class Opened:
    """Descriptors and sizes of open files; as a context they are closed where its body raises."""

    descriptors: list[int]
    sizes: list[int]

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.close()

    def close(self) -> None:
        """Close them."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@dataclass(frozen=True)
class FileOpener:
    """Opens files of `location`; `staging` takes copies of remote ones."""

    location: Location
    staging: Staging

    def local(self, paths: Sequence[str]) -> list[str]:
        """Where to open files: themselves, or their staged copies. DamageError where one is missing."""
        if not self.location.is_remote:
            return [self.location.at(path) for path in paths]
        try:
            staged = [str(path) for path in self.staging.fetch(self.location, paths)]
        except MissingFileError as error:
            raise DamageError(f"{error}; {REMEDY}") from error
        open_files().drop(lambda file: not os.fstat(file.descriptor).st_nlink)  # so that their disk space is given back
        return staged

    def open(self, paths: Sequence[str], tails: Sequence[Bytes], sample_bytes: Sequence[int]) -> Opened:
        """Open files and fill `tails` with their ends, which must end in their own CRC32C; all or none of them.

        Files whose samples are small are read ahead whole: reading them one by one costs more than their bytes.
        """
        ahead = [size < _SMALL for size in sample_bytes]
        with ThreadPoolExecutor(min(_AT_ONCE, len(paths))) as pool:
            opening = [pool.submit(_open_tail, *file) for file in zip(self.local(paths), tails, ahead, strict=True)]
        errors = [future.exception() for future in opening]
        done = [future.result() for future in opening if future.exception() is None]
        with Opened([descriptor for descriptor, _ in done], [size for _, size in done]) as opened:
            for path, error in zip(paths, errors, strict=True):
                if error is not None:
                    raise self._failure(path, error) from error
        return opened

    def _failure(self, path: str, error: BaseException) -> BaseException:
        where = self.location.at(path)
        if isinstance(error, DamageError):
            return DamageError(f"{where}: {error}; {REMEDY}")
        if isinstance(error, FileNotFoundError):
            return DamageError(f"{where}: missing, and with it a whole block of samples; {REMEDY}")
        return explain(error, where) if isinstance(error, OSError) else error


def _open_tail(path: str, tail: Bytes, ahead: bool) -> tuple[int, int]:
    """Descriptor and size of a file; `tail` is filled with its end and compared with the checksum it ends in."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if ahead:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        read = size >= len(tail) and read_fully(descriptor, tail, size - len(tail))
        if len(tail) and not (read and crc32c(tail[:-SUM_BYTES]) == int(tail[-SUM_BYTES:].view("<u4")[0])):
            raise DamageError("its index is damaged or cut, so no sample in it can be found")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size
