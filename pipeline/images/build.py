"""Building a shard index: one streaming pass over all image bytes, a thread per shard."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.images.index import ShardIndex
from pipeline.images.index_file import Columns, IndexHeader, hash_keys, join_keys
from pipeline.images.scan import Advance, Scanned, scan_files, scan_tar
from pipeline.images.source import ImageSource, ShardError, find_images

MOST_PROBLEMS = 20
"""After so many faults the scan stops: hours over data of another kind help nobody."""

_FILES_A_JOB = 512
_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass(frozen=True)
class IndexProgress:
    """How far a scan is; `bytes` of `bytes_total`, `samples` found so far."""

    samples: int
    bytes: int
    bytes_total: int
    shards_done: int
    shards: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    shard: int
    scan: Callable[[Advance], Scanned]


def build_index(data: str, *, progress: Callable[[IndexProgress], None] | None = None, threads: int = 2) -> ShardIndex:
    """Read every shard of `data` once and index it: key, place, label and SHA-256 of every image.

    `data`: see `find_images`. Samples come in the order of the sorted shard names, then as they lie in the tar (images
    of folders: sorted by path). Labels come from `.cls` members or from the class folder's number, -1 where there are
    none. `progress` is called from the scanning threads, one at a time. ShardError, naming shard and member: see
    `tar.members`; also duplicate keys, a sample without an image or with two, a label that is no number. Links, files
    without an extension and hidden files belong to no sample.
    """
    source = find_images(data)
    jobs = _jobs(source)
    meter = _Meter(source, jobs, progress)
    with ThreadPoolExecutor(max(1, threads), "index") as pool:
        futures = [pool.submit(meter.run, job) for job in jobs]
        try:
            scanned = [future.result() for future in futures]
        except BaseException:
            meter.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    problems = [problem for scan in scanned for problem in scan.problems]
    if problems:
        raise ShardError(*problems)
    return _assemble(source, jobs, scanned)


def _jobs(source: ImageSource) -> list[_Job]:
    if source.kind == "tars":
        return [
            _Job(number, partial(scan_tar, source.root, shard, stamp.bytes))
            for number, (shard, stamp) in enumerate(zip(source.shards, source.stamps, strict=True))
        ]
    jobs = []
    for number, files in enumerate(source.files):
        label = number if source.kind == "classes" else -1
        for start in range(0, len(files), _FILES_A_JOB):
            part = files[start : start + _FILES_A_JOB]
            jobs.append(_Job(number, partial(scan_files, source.root, part, label)))
    return jobs


class _Meter:
    """Runs jobs, counts what they read, and stops them all after too many problems."""

    def __init__(self, source: ImageSource, jobs: list[_Job], report: Callable[[IndexProgress], None] | None) -> None:
        self.stop = threading.Event()
        self._report, self._lock = report, threading.Lock()
        self._total = sum(stamp.bytes for stamp in source.stamps)
        self._left = np.bincount([job.shard for job in jobs], minlength=len(source.shards))
        self._samples = self._bytes = self._problems = 0
        self._start = self._last = time.monotonic()

    def run(self, job: _Job) -> Scanned:
        if self.stop.is_set():
            return Scanned()
        scanned = job.scan(self._advance)
        with self._lock:
            self._left[job.shard] -= 1
            self._problems += len(scanned.problems)
            if self._problems >= MOST_PROBLEMS:
                self.stop.set()
            self._report_now()
        return scanned

    def _advance(self, samples: int, size: int) -> bool:
        with self._lock:
            self._samples += samples
            self._bytes += size
            if time.monotonic() - self._last > _SECONDS_BETWEEN_REPORTS:
                self._report_now()
        return not self.stop.is_set()

    def _report_now(self) -> None:
        self._last = time.monotonic()
        if self._report is not None:
            done, seconds = int((self._left == 0).sum()), self._last - self._start
            self._report(IndexProgress(self._samples, self._bytes, self._total, done, len(self._left), seconds))


def _assemble(source: ImageSource, jobs: Sequence[_Job], scanned: Sequence[Scanned]) -> ShardIndex:
    keys = [key for scan in scanned for key in scan.keys]
    if not keys:
        raise ShardError(f"{source.data}: the shards hold no samples")
    suffixes = sorted({suffix for scan in scanned for suffix in scan.suffixes})
    numbers = {suffix: number for number, suffix in enumerate(suffixes)}
    key_bytes, key_ends = join_keys(keys)
    hashes, order = hash_keys(keys)
    columns = Columns(
        key_bytes,
        key_ends,
        shard=np.repeat(np.array([job.shard for job in jobs], np.int32), [len(scan.keys) for scan in scanned]),
        suffix=np.array([numbers[suffix] for scan in scanned for suffix in scan.suffixes], np.uint16),
        offset=np.concatenate([np.array(scan.offsets, np.int64) for scan in scanned]),
        size=np.concatenate([np.array(scan.sizes, np.int64) for scan in scanned]),
        label=np.concatenate([np.array(scan.labels, np.int32) for scan in scanned]),
        digest=np.frombuffer(b"".join(scan.digests for scan in scanned), np.uint8).reshape(-1, 32),
        hashes=hashes,
        order=order,
    )
    _refuse_duplicates(columns, keys, source)
    root = source.root.url
    return ShardIndex(
        columns, IndexHeader(source.data, source.kind, root, source.shards, source.stamps, tuple(suffixes))
    )


def _refuse_duplicates(columns: Columns, keys: Sequence[str], source: ImageSource) -> None:
    """Within a tar they are found by its scan; here between shards, and in folders (`a.jpg` beside `a.png`)."""
    same = np.flatnonzero(columns.hashes[1:] == columns.hashes[:-1])
    problems = []
    for position in same:
        first, second = sorted(columns.order[position : position + 2].tolist())
        if keys[first] == keys[second]:
            here, there = (source.shards[columns.shard[row]] or "." for row in (second, first))
            problems.append(f"{here}: {keys[second]}: duplicate key, shard {there} has it already")
    if problems:
        raise ShardError(*problems)
