"""A bounded local folder for remote files: read whole, once, instead of sample by sample."""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage import Location

_AT_ONCE = 8  # downloads


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
        found: list[tuple[float, int, Path]] = []
        for file in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.limit:
                return
            if file not in keep:
                file.unlink(missing_ok=True)
                total -= size
