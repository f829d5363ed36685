"""`cache copy`: columns to another cache, another place, another format; resumable, block by block."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipeline.cache.column import Column
from pipeline.cache.column_codec import LevelFidelity
from pipeline.cache.folder import Cache, ColumnId
from pipeline.cache.lease import Lease
from pipeline.cache.records import BlockRecord, from_ranges
from pipeline.cache.stores import FORMATS
from pipeline.cache.stores.base import StoredViews
from pipeline.cache.writer import WritableColumn
from pipeline.tables import human_bytes
from sak.errors import UsageError, nearest

_CHUNK = 32  # samples held in memory at a time


@dataclass(frozen=True)
class CopyReport:
    """What a copy did; `left` counts blocks that another writer is at work on."""

    source: str
    target: str
    columns: int
    copied: int
    already_there: int
    left: int
    nbytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """One line."""
        left = f", {self.left} left to another writer" if self.left else ""
        return (
            f"{self.copied:,} blocks ({human_bytes(self.nbytes)}) of {self.columns} columns copied to {self.target}"
            f" in {self.seconds:.1f} s; {self.already_there:,} were there{left}"
        )


def copy_cache(
    source: str | Path | Cache,
    target: str | Path,
    *,
    teachers: Sequence[str] | None = None,
    to_format: str | None = None,
    codec: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy every column, or those of `teachers` (names, with or without key), into the cache at `target`.

    `to_format` (zarr or webdataset) and `codec` are by default those of the source (webdataset has no codec); a column
    that `target` has begun keeps its own. Encoded values are read, checked and written again as they are. Run again, it
    goes on where it stopped. `progress` is called with (blocks done, blocks to do).
    """
    started = time.perf_counter()
    if to_format is not None and to_format not in FORMATS:
        raise UsageError(f"no format {to_format!r}{nearest(to_format, FORMATS)}")
    opened, made = Cache.open(source), Cache.create(target)
    if opened.top.location == made.top.location:
        raise UsageError(f"{target}: a cache cannot be copied onto itself; give another place")
    jobs = [_ColumnCopy(opened, made, path, to_format, codec) for path in _wanted(opened, teachers)]
    todo = [(job, record) for job in jobs for record in job.pending()]
    written: list[BlockRecord] = []
    for done, (job, record) in enumerate(todo, 1):
        written += job.copy(record)
        if progress is not None:
            progress(done, len(todo))
    return CopyReport(
        source=str(opened),
        target=str(made),
        columns=len(jobs),
        copied=len(written),
        already_there=sum(len(job.records) for job in jobs) - len(todo),
        left=len(todo) - len(written),
        nbytes=sum(record.nbytes for record in written),
        seconds=time.perf_counter() - started,
    )


def _wanted(cache: Cache, teachers: Sequence[str] | None) -> list[ColumnId]:
    paths = sorted(cache.columns, key=lambda path: path.path)
    for name in teachers or ():
        if not any(name in (path.teacher, path.name) for path in paths):
            known = {path.teacher for path in paths}
            raise UsageError(f"{cache}: no features of teacher {name!r}{nearest(name, known)}")
    return [path for path in paths if teachers is None or {path.teacher, path.name} & set(teachers)]


class _ColumnCopy:
    """One column's copy; where the source is an overlay, each block comes from the foremost folder that has it."""

    def __init__(self, source: Cache, target: Cache, path: ColumnId, to_format: str | None, codec: str | None) -> None:
        parts = [Column.open(folder, path) for folder in source.columns[path]]
        first = parts[0].manifest
        target.top.add_index(parts[0].folder.index(path.data))
        format_ = to_format or first.format
        kept = "none" if format_ == "webdataset" else first.layout.codec
        wanted = replace(first, layout=replace(first.layout, codec=codec or kept), format=format_)
        self._target = WritableColumn.create_or_open(target, wanted)
        self.records: dict[tuple[int, int], tuple[Column, BlockRecord]] = {
            block: (part, record) for part in reversed(parts) for block, record in part.records.items()
        }
        for calibration in filter(None, (part.calibration() for part in parts)):
            self._target.publish_calibration(calibration)

    def pending(self) -> list[BlockRecord]:
        """The source's blocks that the target has not, in order."""
        there = self._target.column.fresh().records
        return [record for block, (_, record) in sorted(self.records.items()) if not _same(there.get(block), record)]

    def copy(self, record: BlockRecord) -> list[BlockRecord]:
        """The new record of one block copied; none where another writer has it."""
        lease = self._target.leases.acquire(record.name)
        if lease is None:
            return []
        with lease:
            return [self._copy(record, lease)]

    def _copy(self, record: BlockRecord, lease: Lease) -> BlockRecord:
        part = self.records[record.view, record.block][0]
        names = [array.name for array in part.manifest.layout.arrays]
        size = part.manifest.document["views"]["size"]
        with self._target.write(lease, record.view, record.block) as job:
            for start in range(0, len(record.samples), _CHUNK):
                samples = record.samples[start : start + _CHUNK]
                arrays = part.store.read(record.view, samples, names)
                rows = part.stored_views(record.view, samples)
                views = StoredViews(rows, record.view, (size[0], size[1]))
                job.append(samples, arrays, [views.view(row) for row in range(len(views))], views.crcs.tolist())
            return job.finish(
                fidelity={int(level): LevelFidelity.from_json(sums) for level, sums in record.fidelity.items()},
                facts={**record.facts, "copied_from": str(part.location)},
                calibration=record.calibration,
                absent=record.absent,
                elsewhere=from_ranges(record.elsewhere),
            )


def _same(there: BlockRecord | None, record: BlockRecord) -> bool:
    """Whether a block has been copied: it covers the same samples under the same calibration."""
    covered = attrgetter("present", "absent", "elsewhere", "calibration")
    return there is not None and bool(covered(there) == covered(record))
