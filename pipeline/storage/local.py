"""A folder on a file system of this machine, and how a file is written there whole, durably or not at all."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pipeline.storage.location import SCRATCH_SUFFIX, Entry, Location, StorageError, explain


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
    with target.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, making its folder; not forced onto the disk: what is lost can be made again."""
    scratch = scratch_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written ({error.strerror}); make room, or choose another folder"
        ) from error


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, fewer where the file ends before; one read may give less than there is."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


class LocalFolder(Location):
    """See `Location`."""

    def local_path(self, path: str = "") -> Path:
        """See `Location`."""
        return Path(self.at(path))

    @contextmanager
    def _file(self, path: str = "") -> Iterator[Path]:
        """Where `path` lies; what the block fails with there is explained."""
        try:
            yield self.local_path(path)
        except StorageError:
            raise
        except OSError as error:
            raise explain(error, self.at(path)) from error

    def exists(self, path: str = "") -> bool:
        """See `Location`."""
        with self._file(path) as file:
            return file.exists()

    def size(self, path: str) -> int:
        """See `Location`."""
        with self._file(path) as file:
            return file.stat().st_size

    def list(self, path: str = "") -> list[str]:
        """See `Location`."""
        with self._file(path) as folder, suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(folder) if not is_scratch(name))  # noqa: PTH208
        return []

    def walk(self, path: str = "") -> Iterator[Entry]:
        """See `Location`."""
        yield from (entry for entry in self._files(path) if not is_scratch(entry.path.rsplit("/", 1)[-1]))

    def _files(self, path: str = "") -> Iterator[Entry]:
        with self._file(path) as folder:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            name = file.relative_to(self.url).as_posix()
            # A file may vanish between the listing and its turn.
            with suppress(FileNotFoundError), self._file(name):
                status = file.stat()
                yield Entry(name, status.st_size, status.st_mtime)

    def read_bytes(self, path: str) -> bytes:
        """See `Location`."""
        with self._file(path) as file:
            return file.read_bytes()

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """See `Location`."""
        with self._file(path) as name, name.open("rb", buffering=0) as file:
            parts = tuple(read_at(file.fileno(), offset, length) for offset, length in ranges)
        return self._complete(path, ranges, parts)

    def write_bytes(self, path: str, data: bytes) -> None:
        """See `Location`."""
        with self._file(path) as file:
            make_folder(file.parent)
            replace_durably(file, data)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """See `Location`."""
        scratch = self.scratch(path)
        with self._file(path) as file:
            try:
                write_durably(scratch, data)
                file.hardlink_to(scratch)
                fsync_folder(scratch.parent)
            except FileExistsError:
                return False
            finally:
                scratch.unlink(missing_ok=True)
        return True

    def scratch(self, path: str) -> Path:
        """See `Location`."""
        with self._file(path) as file:
            make_folder(file.parent)
            return scratch_beside(file)

    def publish(self, scratch: Path, path: str) -> None:
        """See `Location`."""
        with self._file(path) as file:
            fsync_file(scratch)
            scratch.replace(file)
            fsync_folder(file.parent)

    def delete(self, path: str) -> None:
        """See `Location`."""
        with self._file(path) as file:
            file.unlink(missing_ok=True)

    def delete_tree(self, path: str) -> None:
        """See `Location`."""
        with self._file(path) as folder, suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def remove_scratch(self, older_than: float) -> int:
        """See `Location`."""
        old = time.time() - older_than
        removed = 0
        for entry in self._files():
            if is_scratch(entry.path.rsplit("/", 1)[-1]) and (entry.modified or 0.0) <= old:
                self.delete(entry.path)
                removed += entry.bytes
        return removed

    def stage(self, path: str, folder: Path) -> Path:
        """The file itself: it is local already; `folder` stays untouched."""
        del folder
        return self.local_path(path)

    def free_space(self) -> int | None:
        """See `Location`."""
        with self._file() as folder:
            while not folder.exists():
                folder = folder.parent
            return shutil.disk_usage(folder).free
