"""A folder behind an fsspec URL: `s3://`, `gs://`, `memory://`, ..."""

import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from pipeline.processes import is_alive
from pipeline.storage.local import LocalFolder, make_folder, scratch_beside
from pipeline.storage.location import SCRATCH_SUFFIX, Entry, Location, StorageError, explain

T = TypeVar("T")

# Seconds to wait before each further attempt; the libraries below repeat single requests themselves.
DELAYS = (0.5, 1.0, 2.0, 4.0)
_ABANDONED = 3600.0  # seconds

_PASSING = frozenset(
    {
        *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT),
        *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH),
    }
)
# What the transports raise beside OSError: class by module, looked up only where the module is in use.
_TRANSPORT = {
    "botocore.exceptions": ("BotoCoreError",),
    "aiohttp.client_exceptions": ("ClientError",),
    "gcsfs.retry": ("HttpError", "ChecksumError", "NonRetryableError"),
    "google.auth.exceptions": ("GoogleAuthError",),
}
_PASSING_TRANSPORT = {
    "botocore.exceptions": ("HTTPClientError", "ConnectionError"),
    "aiohttp.client_exceptions": ("ClientConnectionError", "ClientPayloadError"),
    "gcsfs.retry": ("ChecksumError",),
    "google.auth.exceptions": ("TransportError",),
}


def _classes(table: dict[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    return tuple(
        getattr(sys.modules[module], name) for module in table if module in sys.modules for name in table[module]
    )


def _errors() -> tuple[type[Exception], ...]:
    """Asked for when something was raised: the transport is imported by then."""
    return OSError, *_classes(_TRANSPORT)


def _passes(error: Exception) -> bool:
    """Whether trying again may help: time-outs, lost connections, a server's own failures."""
    if isinstance(error, (TimeoutError, ConnectionError, *_classes(_PASSING_TRANSPORT))):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    code = str(getattr(error, "code", ""))
    return code in ("408", "429") or (code.isdigit() and code >= "500")


def _seconds(info: dict[str, Any]) -> float | None:
    for name in ("LastModified", "mtime", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    return None


@lru_cache(maxsize=8)
def _remove_abandoned(folder: Path) -> None:
    """Remove the scratch files of processes that were killed while they wrote; once in a process is enough.

    Those of an hour ago: a process that is not seen here may live in another container, and writes all the time.
    """
    for file in folder.glob(f".sak-*{SCRATCH_SUFFIX}"):
        process = file.name.split("-")[1]
        with suppress(OSError):
            if process.isdecimal() and file.stat().st_mtime < time.time() - _ABANDONED and not is_alive(int(process)):
                file.unlink()


class RemoteFolder(Location):
    """See `Location`. Requests that fail for passing reasons are repeated with growing pauses."""

    def local_path(self, path: str = "") -> Path | None:
        """None."""
        del path
        return None

    def _try(self, path: str, action: Callable[[AbstractFileSystem, str], T]) -> T:
        """`action(file system, its own path)`, repeated while the error passes."""
        url = self.at(path)
        delays = list(DELAYS)
        while True:
            try:
                # Looked up each time: fsspec keeps instances by process, so that none crosses a fork.
                files, where = url_to_fs(url, use_listings_cache=False)
                return action(files, where)
            except ImportError as error:
                raise StorageError(f"{url}: {error}; install it with `pip install 'sak[remote]'`") from error
            except (FileExistsError, StorageError):
                raise
            except _errors() as error:
                if not delays or not _passes(error):
                    raise explain(error, url) from error
                time.sleep(delays.pop(0))

    def exists(self, path: str = "") -> bool:
        """See `Location`."""
        return bool(self._try(path, lambda files, where: files.exists(where)))

    def size(self, path: str) -> int:
        """See `Location`."""
        return int(self._try(path, lambda files, where: files.info(where)["size"]))

    def list(self, path: str = "") -> list[str]:
        """See `Location`."""

        def names(files: AbstractFileSystem, where: str) -> list[str]:
            try:
                paths = files.ls(where, detail=False)
            except FileNotFoundError:
                return []
            return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in paths if name.rstrip("/") != where})

        return self._try(path, names)

    def walk(self, path: str = "") -> Iterator[Entry]:
        """See `Location`."""

        def entries(files: AbstractFileSystem, where: str) -> list[Entry]:
            start = len(where.rstrip("/")) + 1
            prefix = f"{path}/" if path else ""
            infos = files.find(where, detail=True)
            return [
                Entry(prefix + name[start:], int(info["size"]), _seconds(info)) for name, info in sorted(infos.items())
            ]

        yield from self._try(path, entries)

    def read_bytes(self, path: str) -> bytes:
        """See `Location`."""
        return bytes(self._try(path, lambda files, where: files.cat_file(where)))

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """See `Location`."""
        starts = [offset for offset, _ in ranges]
        ends = [offset + length for offset, length in ranges]
        parts = self._try(
            path, lambda files, where: files.cat_ranges([where] * len(starts), starts, ends, on_error="raise")
        )
        return self._complete(path, ranges, tuple(map(bytes, parts)))

    def write_bytes(self, path: str, data: bytes) -> None:
        """See `Location`."""
        self._try(path, lambda files, where: files.pipe_file(where, data))

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """See `Location`."""

        def create(files: AbstractFileSystem, where: str) -> bool:
            try:
                files.pipe_file(where, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # s3fs gives a failed If-None-Match as a plain EINVAL.
                if error.errno != errno.EINVAL or not files.exists(where):
                    raise
                return False
            return True

        return self._try(path, create) or self.read_bytes(path) == data

    def scratch(self, path: str) -> Path:
        """See `Location`."""
        name = self.at(path).rsplit("/", 1)[-1]
        folder = Path(tempfile.gettempdir())
        _remove_abandoned(folder)
        return folder / f".sak-{os.getpid()}-{name[:100]}.{uuid4().hex}{SCRATCH_SUFFIX}"

    def publish(self, scratch: Path, path: str) -> None:
        """See `Location`."""
        self._try(path, lambda files, where: files.put_file(str(scratch), where))
        if (there := self.size(path)) != (here := scratch.stat().st_size):
            raise StorageError(f"{self.at(path)}: {there} of {here} bytes arrived; run again to write it again")
        scratch.unlink()

    def delete(self, path: str) -> None:
        """See `Location`."""
        self._try(path, lambda files, where: files.rm_file(where) if files.exists(where) else None)

    def delete_tree(self, path: str) -> None:
        """See `Location`."""
        self._try(path, lambda files, where: files.rm(where, recursive=True) if files.exists(where) else None)

    def remove_scratch(self, older_than: float) -> int:
        """Nothing: uploads appear complete or not at all."""
        del older_than
        return 0

    def stage(self, path: str, folder: Path) -> Path:
        """See `Location`; the copy's name holds a digest of the URL and of the file's version."""
        version = self._try(path, lambda files, where: files.ukey(where))
        digest = sha256(f"{self.at(path)}\n{version}".encode()).hexdigest()[:32]
        target = Path(folder) / f"{digest}-{path.rsplit('/', 1)[-1][-100:]}"
        if not target.exists():
            make_folder(target.parent)
            self._download(path, target)
        return target

    def _download(self, path: str, target: Path) -> None:
        scratch = scratch_beside(target)
        try:
            self._try(path, lambda files, where: files.get_file(where, str(scratch)))
            if (here := scratch.stat().st_size) != (there := self.size(path)):
                raise StorageError(f"{self.at(path)}: {here} of {there} bytes arrived; run again")
            LocalFolder(str(target.parent)).publish(scratch, target.name)
        finally:
            scratch.unlink(missing_ok=True)

    def free_space(self) -> int | None:
        """None: object stores do not say."""
        return None
