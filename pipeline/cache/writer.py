"""Writing a column block by block, a block's record last; blocks without one, of killed writers too, are pending.

column = WritableColumn.create_or_open(cache, manifest)
calibration = column.publish_calibration(mine)
for view, block in column.pending(views=2):
    lease = column.lease(view, block)
    if lease is None:  # another writer has it, or it is done
        continue
    with lease, column.write(lease, view, block) as job:
        job.append(samples, arrays, views, crcs)  # as often as wanted
        job.finish(fidelity=..., facts=..., absent=...)
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from dataclasses import field as default
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.calibration import Calibration
from pipeline.cache.column import CALIBRATION, Column
from pipeline.cache.column_codec import LevelFidelity
from pipeline.cache.folder import Cache, ColumnId
from pipeline.cache.key import explain_difference
from pipeline.cache.lease import SECONDS, Lease, LeaseLostError, Leases, Owner, kept_alive
from pipeline.cache.manifest import MANIFEST, CacheError, Manifest
from pipeline.cache.records import Absent, BlockRecord, file_record, record_name, to_ranges
from pipeline.cache.stores.base import ROW, Arrays, rows_to_bytes, to_rows
from pipeline.images.views import View

Samples = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class WritableColumn:
    """A column in the foremost folder of a cache; `below` are its parts in the folders that are only read."""

    column: Column
    below: tuple[Column, ...]
    leases: Leases
    _known: dict[str, Calibration] = default(default_factory=dict)  # never changes once it is there

    @classmethod
    def create_or_open(
        cls, cache: Cache, wanted: Manifest, *, owner: Owner | None = None, lease_seconds: float = SECONDS
    ) -> "WritableColumn":
        """The column of `wanted`, made if there is none; how it lies on disk is what the first manifest says.

        CacheError where the column that is there has another content.
        """
        path = ColumnId.of(wanted)
        below = tuple(Column.open(layer, path) for layer in cache.layers[1:] if path in set(layer.columns()))
        first = below[0].manifest if below else wanted
        location = cache.top.at(path)
        location.create_exclusive(MANIFEST, replace(wanted, layout=first.layout, format=first.format).to_bytes())
        there = cache.top.manifest(path)
        _refuse_other(there, wanted, str(location))
        leases = Leases(location / "leases", owner=owner, seconds=lease_seconds)
        return cls(Column(cache.top, path, there), below, leases)

    @property
    def manifest(self) -> Manifest:
        """What the column is."""
        return self.column.manifest

    def publish_calibration(self, calibration: Calibration) -> Calibration:
        """Make `calibration` the column's, unless it has one; returns the one that holds. Before any block."""
        for column in self.below:
            calibration = column.calibration() or calibration
        self.column.location.create_exclusive(CALIBRATION, calibration.to_bytes())
        return self.calibration() or calibration

    def calibration(self) -> Calibration | None:
        """The calibration that holds, of this folder or those below; None where there is none yet."""
        for column in (self.column, *self.below):
            if "calibration" not in self._known and (published := column.published_calibration()) is not None:
                self._known["calibration"] = published
        return self._known.get("calibration")

    def pending(self, views: int, *, limit: int | None = None) -> list[tuple[int, int]]:
        """(view, block) of every block of the first `views` views without a record in any folder, in order.

        With `limit`, blocks of the first `limit` samples alone; a block that was recorded under a smaller limit is
        pending again under a larger one.
        """
        layers = [self.column.fresh().records, *(column.records for column in self.below)]
        wanted = {block: self._wanted(block, limit) for block in range(self.manifest.layout.blocks)}
        planned = [(view, block) for view in range(views) for block, samples in wanted.items() if samples]
        return [
            (view, block)
            for view, block in planned
            if not any((view, block) in records and records[view, block].covers(wanted[block]) for records in layers)
        ]

    def lease(self, view: int, block: int, *, limit: int | None = None) -> Lease | None:
        """The right to write a block; None where another writer has it, or has finished it meanwhile."""
        lease = self.leases.acquire(record_name(view, block))
        if lease is None:
            return None
        record = self.column.record(view, block)
        if record is not None and record.covers(self._wanted(block, limit)):
            lease.release()
            return None
        return lease

    def write(self, lease: Lease, view: int, block: int) -> "BlockJob":
        """A job for one block under its lease; a record that is there is withdrawn first."""
        if lease.name != record_name(view, block):
            raise ValueError(f"the lease of {lease.name} does not cover {record_name(view, block)}")
        return BlockJob(self, lease, view, block)

    def withdraw(self, view: int, block: int) -> None:
        """Remove a block's record, so that the block is not there and is pending again."""
        self.column.location.delete(f"records/{record_name(view, block)}.json")

    def _wanted(self, block: int, limit: int | None) -> range:
        samples = self.manifest.layout.block_samples(block)
        return samples if limit is None else range(samples.start, max(samples.start, min(samples.stop, limit)))


class BlockJob:
    """Writes one block. Nothing of it counts before `finish`; leaving the context without it leaves nothing behind."""

    def __init__(self, column: WritableColumn, lease: Lease, view: int, block: int) -> None:
        self._column, self._lease, self._view, self._block = column, lease, view, block
        self._samples = column.manifest.layout.block_samples(block)
        self._rows = np.zeros(len(self._samples), ROW)
        self._present = np.zeros(len(self._samples), bool)
        self._context = ExitStack()

    def __enter__(self) -> "BlockJob":
        self._lease.confirm()
        self._column.withdraw(self._view, self._block)
        store = self._column.column.store
        store.prepare(self._view + 1)
        with ExitStack() as context:
            context.enter_context(kept_alive(self._lease))
            self._writer = context.enter_context(store.open_block(self._view, self._block))
            self._context = context.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def append(self, samples: Samples, arrays: Arrays, views: Sequence[View], crcs: Sequence[int]) -> None:
        """Add samples by their numbers in the data set, ascending: arrays (n, *shape), views, and pixel CRCs."""
        positions = np.asarray(samples, np.int64) - self._samples.start
        self._writer.append(positions, arrays)
        self._rows[positions] = to_rows(views, crcs)
        self._present[positions] = True

    def finish(
        self,
        *,
        fidelity: Mapping[int, LevelFidelity],
        facts: Mapping[str, Any],
        calibration: str | None = None,
        absent: Sequence[Absent] = (),
        elsewhere: Samples = (),
    ) -> BlockRecord:
        """Publish the files, then the record. LeaseLostError, and nothing published, where the lease was lost.

        `calibration` is the digest the block was encoded with, by default the column's. `absent` are samples that
        cannot have features; `elsewhere` those that another data key's column holds; the rest was not attempted.
        """
        record = BlockRecord(
            view=self._view,
            block=self._block,
            present=to_ranges(np.flatnonzero(self._present) + self._samples.start),
            files=(),
            views=None,
            calibration=self._calibration(calibration),
            absent=tuple(absent),
            elsewhere=to_ranges(sorted(elsewhere)),
            fidelity={str(level): sums.to_json() for level, sums in fidelity.items()},
            facts=dict(facts),
        )
        self._refuse_overlap(record)
        if record.present:
            record = self._publish_files(record)
        self._lease.confirm()
        location = self._column.column.location
        if not record.write(location):
            raise LeaseLostError(f"{location}: another writer recorded {record.name}; this one's work is dropped")
        return record

    def _publish_files(self, record: BlockRecord) -> BlockRecord:
        views = file_record(f"views/{record.name}.bin", data := rows_to_bytes(self._rows))
        self._lease.confirm()
        files = self._writer.finish()
        self._column.column.location.write_bytes(views.path, data)
        return replace(record, files=files, views=views)

    def _calibration(self, used: str | None) -> str | None:
        calibration = self._column.calibration()
        holds = calibration.digest if calibration else None
        if used is not None and used != holds:
            raise CacheError(
                f"{self._column.column.location}: encoded with calibration {used[:12]}, the column's is "
                f"{holds[:12] if holds else 'not published'}; encode with the one that `publish_calibration` returned"
            )
        return holds

    def _refuse_overlap(self, record: BlockRecord) -> None:
        samples = [*record.samples.tolist(), *(absent.sample for absent in record.absent)]
        samples += [number for start, stop in record.elsewhere for number in range(start, stop)]
        if len(set(samples)) != len(samples) or not set(samples) <= set(self._samples):
            raise ValueError(f"block {record.name}: its samples are {self._samples}, each present, absent or elsewhere")


def _refuse_other(there: Manifest, wanted: Manifest, where: str) -> None:
    differing = explain_difference(there.document, wanted.document)
    differing += [
        (name, getattr(there, name), getattr(wanted, name))
        for name in ("teacher", "data_key", "width", "grid")
        if getattr(there, name) != getattr(wanted, name)
    ]
    arrays, wanted_arrays = ({array.name: array for array in made.layout.arrays} for made in (there, wanted))
    # Compared as text, where a fill of NaN equals itself.
    if not differing and (repr(arrays) != repr(wanted_arrays) or there.layout.samples != wanted.layout.samples):
        differing = [("arrays", there.layout, wanted.layout)]
    if differing:
        differences = "; ".join(f"{name}: here {old!r}, wanted {new!r}" for name, old, new in differing)
        raise CacheError(f"{where}: another column is here: {differences}; move it away, or write to another cache")
