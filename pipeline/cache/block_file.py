"""One data file of a block while it is written: appended to, checksummed on the way, published whole."""

import os
from concurrent.futures import Executor, Future
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.native_write import append, begin_flush
from pipeline.cache.store import FRAME, FileRecord
from pipeline.storage import Location
from pipeline.storage.errors import explain

# Bytes after which the system is asked to begin writing to disk, so that little is left for the fsync.
_FLUSH_BYTES = 8 << 20


class BlockFile:
    """A scratch file that becomes `path` of `location`; `helpers` flush it in the background."""

    def __init__(self, location: Location, path: str, helpers: Executor) -> None:
        self.bytes = 0
        self._location, self._path, self._helpers = location, path, helpers
        self._scratch: Path = location.scratch(path)
        self._frame = sha256()
        self._flushed = 0
        self._flushes: list[Future[int]] = []
        try:
            self._descriptor = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explain(error, str(self._scratch)) from error

    def append(self, pieces: NDArray[np.int64], sums: NDArray[np.uint64]) -> None:
        """Append memory: rows of (address, bytes). `sums` receives the CRC32C of each, in time to be a later piece.

        `frame` must be called next, with what of it is not samples' values.
        """
        try:
            self.bytes += append(self._descriptor, self.bytes, pieces, sums)
        except OSError as error:
            raise explain(error, str(self._scratch)) from error
        if self.bytes - self._flushed >= _FLUSH_BYTES:
            part = self._flushed, self.bytes - self._flushed
            self._flushes.append(self._helpers.submit(begin_flush, self._descriptor, *part))
            self._flushed = self.bytes

    def frame(self, data: bytes) -> None:
        """Count bytes that were appended into the file's digest: all but values, which their CRC32C stands for."""
        self._frame.update(data)

    def append_frame(self, data: bytes) -> None:
        """Append a few bytes that are not values."""
        self.frame(data)
        memory = np.frombuffer(data, np.uint8)
        self.append(np.array([[memory.ctypes.data, len(data)]], np.int64), np.zeros(1, np.uint64))

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
