"""A block's files: how both stores write them, all or none, and how they are checked against the block's record."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.stores.base import FRAME, ArrayLayout, Arrays, ColumnLayout, Damage, DamageError, FileRecord
from pipeline.cache.stores.files import OpenFile, open_files
from pipeline.cache.stores.indexed import IndexedStore
from pipeline.cache.stores.ranges import Bytes, RangeError, Ranges, read_ranges
from pipeline.storage import Location, MissingFileError
from pipeline.storage.location import explain

_FLUSH_BYTES = 8 << 20  # after which the system is asked to begin writing to disk, so that little is left for the fsync
_GROUP_BYTES, _GROUP_PIECES = 1 << 19, 1000  # IOV_MAX is 1,024
_HELPERS = 4  # threads that flush, fsync and publish: they wait for disks and networks
_PIECE = 1 << 20  # bytes of a file that are hashed at a time


class BlockFile:
    """A data file while it is written: a scratch file that becomes `path` of `location`; `helpers` flush it."""

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

        What of it is not samples' values must be given to `frame`, in order.
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


class FilesWriter(ABC):
    """Writes the samples of one block to the files in `self.files`; nothing of them is seen before `finish`.

    As a context manager it aborts where the body raises, or where it ends without `finish`.
    """

    def __init__(self, location: Location, layout: ColumnLayout, view: int, block: int) -> None:
        self.layout = layout
        self._block = location.url, view, block
        self.count = len(layout.block_samples(block))
        self.files: list[BlockFile] = []
        self.helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="block-files")
        self._last = -1
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._open:
            self.abort()

    @abstractmethod
    def write(self, positions: NDArray[np.int64], rows: Arrays) -> None:
        """Append checked samples, C-contiguous and in the machine's byte order."""

    @abstractmethod
    def seal(self) -> None:
        """Append what stands at the end of the files."""

    def append(self, positions: Sequence[int] | NDArray[np.integer[Any]], arrays: Arrays) -> None:
        """Add samples by their positions in the block, ascending; every array of the layout, (n, *shape).

        Samples that are never added stay absent. ValueError for a shape, dtype or position that does not fit,
        StorageError where the disk refuses.
        """
        self._refuse_closed()
        numbers = np.asarray(positions, np.int64)
        rows = self._checked(numbers, arrays)
        if len(numbers):
            with self.aborting():
                self.write(numbers, rows)
            self._last = int(numbers[-1])

    def finish(self) -> tuple[FileRecord, ...]:
        """Make the block's files durable and visible; replaces what an earlier attempt left."""
        self._refuse_closed()
        with self.aborting():
            self.seal()
            records = tuple(self.helpers.map(BlockFile.finish, self.files))
        self._open = False
        self.helpers.shutdown()
        open_files().drop(lambda file: (file.key[0], *file.key[2:]) == self._block)
        return records

    @contextmanager
    def aborting(self) -> Iterator[None]:
        """Whatever fails inside ends the block: a half-written one can never be finished."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _refuse_closed(self) -> None:
        if not self._open:
            raise ValueError("this block was finished, aborted, or failed before")

    def abort(self) -> None:
        """Remove what was written."""
        self._open = False
        self.helpers.shutdown(cancel_futures=True)
        for file in self.files:
            file.abort()

    def _checked(self, positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        before = np.concatenate([[self._last], positions])
        if len(positions) and (np.any(np.diff(before) <= 0) or positions[-1] >= self.count):
            raise ValueError(
                f"positions must ascend from {self._last + 1} to {self.count - 1}, got {positions.tolist()}"
            )
        wanted = {array.name: array for array in self.layout.arrays}
        if arrays.keys() != wanted.keys():
            raise ValueError(f"every array of the layout is wanted, {sorted(wanted)}, got {sorted(arrays)}")
        return {name: _fitting(array, len(positions), arrays[name]) for name, array in wanted.items()}


def _fitting(array: ArrayLayout, n: int, values: NDArray[Any]) -> NDArray[Any]:
    if values.shape != (n, *array.shape) or values.dtype != np.dtype(array.dtype):
        raise ValueError(f"{array.name} must be {array.dtype} {(n, *array.shape)}, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values)


class ColumnStore(IndexedStore):
    """One column on a local folder or a remote one, in blocks. Safe to share between threads, fork and pickle."""

    @abstractmethod
    def prepare(self, views: int) -> None:
        """Write the metadata for at least `views` views, before any block; more views append, never fewer."""

    @abstractmethod
    def check_metadata(self, views: int) -> tuple[Damage, ...]:
        """What is wrong with the files that `prepare` wrote, which must hold at least `views` views."""

    @abstractmethod
    def open_block(self, view: int, block: int) -> FilesWriter:
        """A writer for one block of one view."""

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """What is wrong with a block's files, compared with its records; empty where all is well.

        Shallow: existence, sizes and indices. Deep: every byte.
        """
        paths = self.files(view, block)
        recorded = {record.path: record for record in records}
        damages = [Damage(path, "recorded, but this block has no such file") for path in sorted({*recorded} - {*paths})]
        damages += [Damage(path, wrong) for path in paths if (wrong := self._wrong_size(path, recorded.get(path)))]
        unsized = {damage.path for damage in damages}
        values: dict[str, NDArray[np.int64]] = dict.fromkeys(paths, np.empty((0, 2), np.int64))
        for name in dict.fromkeys(self.data_file(array)[0] for array in self.layout.arrays):
            path = self.data_path(name, view, block)
            try:
                (file,) = self.load([(self.location.url, name, view, block)])
            except DamageError as error:
                del values[path]
                # Where a file of this block is lost or cut, that is what is wrong, and it is named already.
                damages += [] if unsized else [Damage(self._named_in(error, paths), str(error))]
                continue
            try:
                damages += self._wrong_values(name, path, file) if deep else ()
                values[path] = file.places[..., :2].reshape(-1, 2)
            finally:
                file.close()
        for path in [path for path in values if path not in unsized] if deep else []:
            if self._frame_digest(path, values[path]) != recorded[path].digest:
                damages.append(Damage(path, "its headers, checksums or index are not those that were written"))
        return tuple(damages) or self._disagreement(view, block)

    def _wrong_size(self, path: str, record: FileRecord | None) -> str:
        if record is None:
            return "not in the block's record"
        try:
            size = self.location.size(path)
        except MissingFileError:
            return "missing"
        return "" if size == record.bytes else f"{size} bytes, {record.bytes} were written"

    def _named_in(self, error: DamageError, paths: Sequence[str]) -> str:
        """The file that an error's line begins with."""
        return next((path for path in paths if str(error).startswith(f"{self.location.at(path)}: ")), paths[0])

    def _wrong_values(self, name: str, path: str, file: OpenFile) -> Iterator[Damage]:
        """Every sample whose values are not those of its checksum."""
        for array in self.layout.arrays:
            of_file, row = self.data_file(array)
            if of_file != name:
                continue
            places = file.places[row]
            memory = np.empty(int(places[:, 1].max(initial=0)), np.uint8)
            for position in np.flatnonzero(places[:, 0] >= 0).tolist():
                offset, length, *known = places[position].tolist()
                try:
                    read_ranges(Ranges([file.descriptor], [offset], [memory[:length]], known or None))
                except RangeError as error:
                    sample = file.key[3] * self.layout.block + position
                    yield Damage(path, f"{array.name}: {error}", sample)

    def _disagreement(self, view: int, block: int) -> tuple[Damage, ...]:
        """Arrays that hold different samples, each sound by itself."""
        try:
            self.present(view, block)
        except DamageError as error:
            return (Damage(self.files(view, block)[0], str(error)),)
        return ()

    def _frame_digest(self, path: str, values: NDArray[np.int64]) -> str:
        """`FileRecord.digest` of a file, of which `values`, rows of (offset, bytes), are left out; -1 is nowhere."""
        digest = sha256()
        present = values[values[:, 0] >= 0]
        present = present[np.argsort(present[:, 0])]
        with Path(self.opener.local([path])[0]).open("rb", buffering=0) as file:
            start = 0
            for offset, length in [*present.tolist(), (os.fstat(file.fileno()).st_size, 0)]:
                while start < offset and (data := os.pread(file.fileno(), min(_PIECE, offset - start), start)):
                    digest.update(data)
                    start += len(data)
                start = offset + length
        return f"{FRAME}{digest.hexdigest()}"
