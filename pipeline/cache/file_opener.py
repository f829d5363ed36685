"""Opening a column's files for reading, remote ones by way of a local copy; what may go wrong is said in one line."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c

from pipeline.cache.open_files import open_files
from pipeline.cache.ranges import SUM_BYTES, Bytes, read_fully
from pipeline.cache.staging import Staging
from pipeline.cache.store import REMEDY, DamageError
from pipeline.storage import Location, MissingFileError
from pipeline.storage.errors import explain

_AT_ONCE = 8
# Bytes of a sample below which its file is read ahead whole.
_SMALL = 32 << 10


@dataclass(frozen=True)
class Opened:
    """Descriptors and sizes of open files."""

    descriptors: list[int]
    sizes: list[int]

    def split(self, count: int) -> "tuple[Opened, Opened]":
        """The first `count` files, and the others."""
        return (
            Opened(self.descriptors[:count], self.sizes[:count]),
            Opened(self.descriptors[count:], self.sizes[count:]),
        )

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
        open_files().drop_unlinked()
        return staged

    def open(self, paths: Sequence[str], tails: Sequence[Bytes], sample_bytes: Sequence[int]) -> Opened:
        """Open files and fill `tails` with their ends, which must end in their own CRC32C; all or none of them.

        Files whose samples are small are read ahead whole: reading them one by one costs more than their bytes.
        """
        ahead = [size < _SMALL for size in sample_bytes]
        with ThreadPoolExecutor(min(_AT_ONCE, len(paths))) as pool:
            opening = [pool.submit(_open_tail, *each) for each in zip(self.local(paths), tails, ahead, strict=True)]
        errors = [each.exception() for each in opening]
        done = [each.result() for each, error in zip(opening, errors, strict=True) if error is None]
        opened = Opened([descriptor for descriptor, _ in done], [size for _, size in done])
        for path, error in zip(paths, errors, strict=True):
            if error is not None:
                opened.close()
                raise self._failure(path, error) from error
        return opened

    def _failure(self, path: str, error: BaseException) -> BaseException:
        place = self.location.at(path)
        if isinstance(error, DamageError):
            return DamageError(f"{place}: {error}; {REMEDY}")
        if isinstance(error, FileNotFoundError):
            return DamageError(f"{place}: missing, and with it a whole block of samples; {REMEDY}")
        return explain(error, place) if isinstance(error, OSError) else error


def _open_tail(path: str, tail: Bytes, ahead: bool) -> tuple[int, int]:
    """Descriptor and size of a file; `tail` is filled with its end and compared with the checksum it ends in."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if ahead:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        if len(tail) and not (size >= len(tail) and read_fully(descriptor, tail, size - len(tail)) and _sound(tail)):
            raise DamageError("its index is damaged or cut, so no sample in it can be found")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size


def _sound(tail: Bytes) -> bool:
    return bool(google_crc32c.value(tail[:-SUM_BYTES]) == int.from_bytes(tail[-SUM_BYTES:].tobytes(), "little"))
