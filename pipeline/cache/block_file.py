"""One data file of a block while it is written: appended to, checksummed on the way, published whole."""

import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.cache.ranges import Bytes
from pipeline.cache.store import FRAME, FileRecord
from pipeline.storage import Location
from pipeline.storage.errors import explain

# Bytes after which the system is asked to begin writing to disk, so that little is left for the fsync.
_FLUSH_BYTES = 8 << 20
_GROUP_BYTES, _GROUP_PIECES = 1 << 19, 1000  # IOV_MAX is 1,024


class BlockFile:
    """A scratch file that becomes `path` of `location`; `helpers` flush it in the background."""

    def __init__(self, location: Location, path: str, helpers: Executor) -> None:
        self.bytes = 0
        self._location, self._path, self._helpers = location, path, helpers
        self._scratch: Path = location.scratch(path)
        self._frame = sha256()
        self._flushed = 0
        self._flushes: list[Future[None]] = []
        try:
            self._descriptor = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explain(error, str(self._scratch)) from error

    def append(self, pieces: Iterable[Bytes | bytes]) -> None:
        """Append memory; a group of pieces is written while the sums made of it are fresh in the processor's cache.

        What of it is not samples' values must be told to `frame`, in order.
        """
        group: list[Any] = []
        size = 0
        for piece in pieces:
            group.append(piece)
            size += len(piece)
            if size >= _GROUP_BYTES or len(group) >= _GROUP_PIECES:
                self._write(group, size)
                group, size = [], 0
        self._write(group, size)
        if self.bytes - self._flushed >= _FLUSH_BYTES:
            part = self._flushed, self.bytes - self._flushed
            # Starts writing what is dirty and waits for none of it; what is still dirty stays in the page cache.
            advise = self._helpers.submit(os.posix_fadvise, self._descriptor, *part, os.POSIX_FADV_DONTNEED)
            self._flushes.append(advise)
            self._flushed = self.bytes

    def _write(self, group: list[Any], size: int) -> None:
        try:
            written = os.pwritev(self._descriptor, group, self.bytes)
            while written < size:  # a signal, or a disk that is nearly full
                rest = b"".join(bytes(piece) for piece in group)[written:]
                written += os.pwrite(self._descriptor, rest, self.bytes + written)
        except OSError as error:
            raise explain(error, str(self._scratch)) from error
        self.bytes += size

    def frame(self, data: bytes) -> None:
        """Count bytes that were appended into the file's digest: all but values, which their CRC32C stands for."""
        self._frame.update(data)

    def append_frame(self, data: bytes) -> None:
        """Append a few bytes that are not values."""
        self.frame(data)
        self.append([data])

    def finish(self) -> FileRecord:
        """Make the file durable and visible."""
        self._close()
        self._location.publish(self._scratch, self._path)
        return FileRecord(self._path, self.bytes, f"{FRAME}{self._frame.hexdigest()}")

    def abort(self) -> None:
        """Remove what was written."""
        self._close()
        self._scratch.unlink(missing_ok=True)

    def _close(self) -> None:
        """Close once no flush can meet a descriptor that is somebody else's by then."""
        for flush in self._flushes:
            if not flush.cancel():
                flush.result()
        self._flushes.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
