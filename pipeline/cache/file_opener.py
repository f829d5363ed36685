"""Opening a column's files for reading, remote ones by way of a local copy; what may go wrong is said in one line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.native_calls import FAILED
from pipeline.cache.native_read import Opened, open_tails
from pipeline.cache.open_files import open_files
from pipeline.cache.staging import Staging
from pipeline.cache.store import REMEDY, DamageError
from pipeline.storage import Location, MissingFileError
from pipeline.storage.errors import explain
from sak.errors import SakError

_AT_ONCE = 8
# Bytes of a sample below which its file is read ahead whole.
_SMALL = 32 << 10


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

    def open(self, paths: Sequence[str], tails: Sequence[NDArray[np.uint8]], sample_bytes: Sequence[int]) -> Opened:
        """Open files and fill `tails` with their ends, which must end in their own CRC32C; all or none of them.

        Files whose samples are small are read ahead whole: reading them one by one costs more than their bytes.
        """
        advice = [os.POSIX_FADV_WILLNEED if size < _SMALL else -1 for size in sample_bytes]
        opened = open_tails(self.local(paths), tails, advice, threads=_AT_ONCE)
        for path, status in zip(paths, opened.status, strict=True):
            if status:
                opened.close()
                raise self._failure(path, status)
        return opened

    def _failure(self, path: str, status: int) -> SakError:
        place = self.location.at(path)
        if status < FAILED:
            return DamageError(f"{place}: its index is damaged or cut, so no sample in it can be found; {REMEDY}")
        error = OSError(status - FAILED, os.strerror(status - FAILED))
        if isinstance(error, FileNotFoundError):
            return DamageError(f"{place}: missing, and with it a whole block of samples; {REMEDY}")
        return explain(error, place)
