"""A folder on a file system of this machine."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pipeline.storage.location import SCRATCH_SUFFIX, Entry, Location, StorageError, explain


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, place) from error


def is_scratch(name: str) -> bool:
    """Whether a file name is one that `scratch_beside` gives."""
    return name.startswith(".") and name.endswith(SCRATCH_SUFFIX)


def scratch_beside(target: Path) -> Path:
    """A new hidden name in `target`'s folder; two writers of one target never share it."""
    return target.with_name(f".{target.name[:120]}.{uuid4().hex}{SCRATCH_SUFFIX}")


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durable, with the permissions the umask leaves."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def write_durably(target: Path, data: bytes) -> None:
    """Write a new file and fsync it; the umask decides its permissions."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(target: Path, data: bytes) -> None:
    """Write a file whole or not at all, over one that may be there."""
    scratch = scratch_beside(target)
    try:
        write_durably(scratch, data)
        scratch.replace(target)
        fsync_folder(target.parent)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalFolder(Location):
    """See `Location`."""

    @property
    def is_remote(self) -> bool:
        """False."""
        return False

    def _path(self, path: str) -> Path:
        return Path(self.at(path))

    def local_path(self, path: str = "") -> Path:
        """See `Location`."""
        return self._path(path)

    def exists(self, path: str = "") -> bool:
        """See `Location`."""
        with _explained(self.at(path)):
            return self._path(path).exists()

    def size(self, path: str) -> int:
        """See `Location`."""
        with _explained(self.at(path)):
            return self._path(path).stat().st_size

    def list(self, path: str = "") -> list[str]:
        """See `Location`."""
        with _explained(self.at(path)):
            try:
                return sorted(name for name in os.listdir(self._path(path)) if not is_scratch(name))  # noqa: PTH208
            except FileNotFoundError:
                return []

    def walk(self, path: str = "") -> Iterator[Entry]:
        """See `Location`."""
        yield from (entry for entry in self._files(path) if not is_scratch(entry.path.rsplit("/", 1)[-1]))

    def _files(self, path: str) -> Iterator[Entry]:
        with _explained(self.at(path)):
            found = sorted(each for each in self._path(path).rglob("*") if each.is_file())
        for each in found:
            # A file may vanish between the listing and its turn.
            with suppress(FileNotFoundError), _explained(str(each)):
                status = each.stat()
                yield Entry(each.relative_to(self.url).as_posix(), status.st_size, status.st_mtime)

    def read_bytes(self, path: str) -> bytes:
        """See `Location`."""
        with _explained(self.at(path)):
            return self._path(path).read_bytes()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """See `Location`."""
        with _explained(self.at(path)), self._path(path).open("rb", buffering=0) as file:
            return tuple(self._read_range(file.fileno(), path, *each) for each in ranges)

    def _read_range(self, descriptor: int, path: str, offset: int, length: int) -> bytes:
        data = os.pread(descriptor, length, offset)
        while len(data) < length:
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                raise StorageError(f"{self.at(path)}: ends before byte {offset + length}; it was cut, make it again")
            data += more
        return data

    def write_bytes(self, path: str, data: bytes) -> None:
        """See `Location`."""
        with _explained(self.at(path)):
            make_folder(self._path(path).parent)
            replace_durably(self._path(path), data)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """See `Location`."""
        scratch = self.scratch(path)
        with _explained(self.at(path)):
            try:
                write_durably(scratch, data)
                self._path(path).hardlink_to(scratch)
                fsync_folder(scratch.parent)
            except FileExistsError:
                return False
            finally:
                scratch.unlink(missing_ok=True)
        return True

    def scratch(self, path: str) -> Path:
        """See `Location`."""
        with _explained(self.at(path)):
            target = self._path(path)
            make_folder(target.parent)
            return scratch_beside(target)

    def publish(self, scratch: Path, path: str) -> None:
        """See `Location`."""
        with _explained(self.at(path)):
            fsync_file(scratch)
            scratch.replace(self._path(path))
            fsync_folder(self._path(path).parent)

    def delete(self, path: str) -> None:
        """See `Location`."""
        with _explained(self.at(path)):
            self._path(path).unlink(missing_ok=True)

    def delete_tree(self, path: str) -> None:
        """See `Location`."""
        with _explained(self.at(path)), suppress(FileNotFoundError):
            shutil.rmtree(self._path(path))

    def remove_scratch(self, older_than: float) -> int:
        """See `Location`."""
        old = time.time() - older_than
        removed = 0
        for entry in self._files(""):
            if is_scratch(entry.path.rsplit("/", 1)[-1]) and (entry.modified or 0.0) <= old:
                self.delete(entry.path)
                removed += entry.bytes
        return removed

    def stage(self, path: str, folder: Path) -> Path:
        """The file itself: it is local already; `folder` stays untouched."""
        del folder
        return self._path(path)

    def free_space(self) -> int | None:
        """See `Location`."""
        folder = self._path("")
        while not folder.exists():
            folder = folder.parent
        with _explained(self.url):
            return shutil.disk_usage(folder).free
