"""How fast the disk under a folder reads samples at random, measured: what `plan` compares training's need with."""

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.errors import explain


def read_rate(folder: Path, *, sample_bytes: int = 1 << 20, total_bytes: int = 256 << 20) -> float:
    """Bytes per second of one thread's random reads of `sample_bytes`, after dropping the file from the page cache.

    Writes `total_bytes` into a scratch file in `folder`, and removes it. Where the file system has no disk (tmpfs) that
    is memory's speed, as training will have it there. StorageError where the folder cannot be written.
    """
    scratch = folder / f".read-rate.{os.getpid()}.part"
    try:
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(descriptor, total_bytes)
            return _read_at_random(descriptor, sample_bytes, total_bytes)
        finally:
            os.close(descriptor)
            scratch.unlink()
    except OSError as error:
        raise explain(error, str(folder)) from error


def _fill(descriptor: int, total: int) -> None:
    piece = random.Random(0).randbytes(1 << 20)
    written = 0
    while written < total:
        written += os.write(descriptor, piece[: total - written])
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_at_random(descriptor: int, size: int, total: int) -> float:
    places = list(range(0, total - size + 1, size)) or [0]
    random.Random(1).shuffle(places)
    buffer = bytearray(min(size, total))
    begin = time.perf_counter()
    read = sum(os.preadv(descriptor, [buffer], place) for place in places)
    return read / (time.perf_counter() - begin)


@dataclass(frozen=True)
class Probe:
    """What a place offers: random reading by one thread, in bytes a second, and free bytes (None: it does not say)."""

    read_bytes_per_second: float | None
    free_bytes: int | None


def probe(place: Path) -> Probe:
    """Measure the disk that will hold a cache at `place`, which need not exist; its nearest parent is measured then."""
    folder = place.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return Probe(read_rate(folder), shutil.disk_usage(folder).free)
