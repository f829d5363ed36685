"""What the writers of both stores share: samples in order, helpers in the background, all files or none."""

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
from pipeline.cache.stores.files import FileKey, FileOpener, OpenFile, open_files
from pipeline.cache.stores.ranges import Bytes, RangeError, Ranges, read_ranges
from pipeline.storage import Location, MissingFileError
from pipeline.storage.location import explain

# One data file of a block while it is written: appended to, checksummed on the way, published whole.

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


Rows = dict[str, NDArray[Any]]

# Threads that flush, fsync and publish: they wait for disks and networks.
_HELPERS = 4


class FilesWriter(ABC):
    """A `BlockWriter` over the files in `self.files`."""

    def __init__(self, location: Location, layout: ColumnLayout, view: int, block: int) -> None:
        self.layout = layout
        self._place = location.url, view, block
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
    def write(self, positions: NDArray[np.int64], rows: Rows) -> None:
        """Append checked samples, C-contiguous and in the machine's byte order."""

    @abstractmethod
    def seal(self) -> None:
        """Append what stands at the end of the files."""

    def append(self, positions: Sequence[int] | NDArray[np.integer[Any]], arrays: Arrays) -> None:
        """See `BlockWriter`."""
        self._refuse_closed()
        places = np.asarray(positions, np.int64)
        rows = self._checked(places, arrays)
        if len(places):
            with self.aborting():
                self.write(places, rows)
            self._last = int(places[-1])

    def finish(self) -> tuple[FileRecord, ...]:
        """See `BlockWriter`."""
        self._refuse_closed()
        with self.aborting():
            self.seal()
            records = tuple(self.helpers.map(BlockFile.finish, self.files))
        self._open = False
        self.helpers.shutdown()
        open_files().drop_block(*self._place)
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
        """See `BlockWriter`."""
        self._open = False
        self.helpers.shutdown(cancel_futures=True)
        for file in self.files:
            file.abort()

    def _checked(self, places: NDArray[np.int64], arrays: Arrays) -> Rows:
        before = np.concatenate([[self._last], places])
        if len(places) and (np.any(np.diff(before) <= 0) or places[-1] >= self.count):
            raise ValueError(f"positions must ascend from {self._last + 1} to {self.count - 1}, got {places.tolist()}")
        if set(arrays) != {array.name for array in self.layout.arrays}:
            wanted = sorted(array.name for array in self.layout.arrays)
            raise ValueError(f"every array of the layout is wanted, {wanted}, got {sorted(arrays)}")
        return {array.name: _fitting(array, len(places), arrays[array.name]) for array in self.layout.arrays}


def _fitting(array: ArrayLayout, n: int, values: NDArray[Any]) -> NDArray[Any]:
    if values.shape != (n, *array.shape) or values.dtype != np.dtype(array.dtype):
        raise ValueError(f"{array.name} must be {array.dtype} {(n, *array.shape)}, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values)


# Whether a block's files are what its records say.

_PIECE = 1 << 20


class CheckedStore(ABC):
    """What a store must tell of a block's files so that they can be checked, and the check."""

    location: Location
    layout: ColumnLayout
    opener: FileOpener

    @abstractmethod
    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """What names the file with an array, among those of a block, and which of the arrays in it it is."""

    @abstractmethod
    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of the file that `data_file` names."""

    @abstractmethod
    def files(self, view: int, block: int) -> tuple[str, ...]:
        """See `ColumnStore`."""

    @abstractmethod
    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """Open data files, with their indices read and checked. DamageError names a file that is not right."""

    @abstractmethod
    def present(self, view: int, block: int) -> NDArray[np.bool_]:
        """See `ColumnStore`."""

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        return _check_block(self, view, block, records, deep=deep)


def _check_block(
    store: CheckedStore, view: int, block: int, records: Sequence[FileRecord], *, deep: bool
) -> tuple[Damage, ...]:
    paths = store.files(view, block)
    recorded = {record.path: record for record in records}
    found = [Damage(path, "recorded, but this block has no such file") for path in sorted({*recorded} - {*paths})]
    for path in paths:
        found += _size_damage(store, path, recorded.get(path))
    unsized = {damage.path for damage in found}
    values: dict[str, NDArray[np.int64] | None] = dict.fromkeys(paths, np.empty((0, 2), np.int64))
    for name in dict.fromkeys(store.data_file(array)[0] for array in store.layout.arrays):
        path = store.data_path(name, view, block)
        try:
            (file,) = store.load([(store.location.url, name, view, block)])
        except DamageError as error:
            values[path] = None
            # Where a file of this block is lost or cut, that is what is wrong, and it is named already.
            found += [] if unsized else [Damage(_named_in(error, store, paths), str(error))]
            continue
        try:
            found += _value_damage(store, name, path, file) if deep else ()
            values[path] = file.places[..., :2].reshape(-1, 2)
        finally:
            file.close()
    for path in paths if deep else ():
        if path not in unsized and (where := values[path]) is not None:
            found += _frame_damage(store, recorded[path], where)
    return tuple(found) or tuple(_disagreement(store, view, block))


def _size_damage(store: CheckedStore, path: str, record: FileRecord | None) -> Iterator[Damage]:
    if record is None:
        yield Damage(path, "not in the block's record")
        return
    try:
        size = store.location.size(path)
    except MissingFileError:
        yield Damage(path, "missing")
        return
    if size != record.bytes:
        yield Damage(path, f"{size} bytes, {record.bytes} were written")


def _named_in(error: DamageError, store: CheckedStore, paths: Sequence[str]) -> str:
    """The file that an error's line begins with."""
    return next((path for path in paths if str(error).startswith(f"{store.location.at(path)}: ")), paths[0])


def _value_damage(store: CheckedStore, name: str, path: str, file: OpenFile) -> Iterator[Damage]:
    """Every sample whose values are not those of its checksum."""
    for array in store.layout.arrays:
        of_file, row = store.data_file(array)
        if of_file != name:
            continue
        places = file.places[row]
        memory = np.empty(int(places[:, 1].max(initial=0)), np.uint8)
        for position in np.flatnonzero(places[:, 0] >= 0).tolist():
            offset, length, *known = places[position].tolist()
            try:
                read_ranges(Ranges([file.descriptor], [offset], [memory[:length]], known or None))
            except RangeError as error:
                sample = file.key[3] * store.layout.block + position
                yield Damage(path, f"{array.name}: {error}", sample)


def _frame_damage(store: CheckedStore, record: FileRecord, values: NDArray[np.int64]) -> Iterator[Damage]:
    if frame_digest(Path(store.opener.local([record.path])[0]), values) != record.digest:
        yield Damage(record.path, "its headers, checksums or index are not those that were written")


def _disagreement(store: CheckedStore, view: int, block: int) -> Iterator[Damage]:
    """Arrays that hold different samples, each sound by itself."""
    try:
        store.present(view, block)
    except DamageError as error:
        yield Damage(store.files(view, block)[0], str(error))


def frame_digest(path: Path, values: NDArray[Any]) -> str:
    """`FileRecord.digest` of a file, of which `values`, rows of (offset, bytes), are left out; -1 is nowhere."""
    digest = sha256()
    present = values[values[:, 0] >= 0]
    present = present[np.argsort(present[:, 0])]
    with path.open("rb", buffering=0) as file:
        start = 0
        for offset, length in [*present.tolist(), (os.fstat(file.fileno()).st_size, 0)]:
            while start < offset and (data := os.pread(file.fileno(), min(_PIECE, offset - start), start)):
                digest.update(data)
                start += len(data)
            start = offset + length
    return f"{FRAME}{digest.hexdigest()}"
