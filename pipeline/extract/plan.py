"""What is left to do: pending = planned - recorded, as jobs of a block each, and the disk space they need.

A block counts by its record alone, so one whose writer was killed is pending again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.cache.manifest import Manifest
from pipeline.cache.records import record_name
from pipeline.cache.stores.base import ROW, ColumnLayout
from pipeline.extract.columns import ExtractionTarget, Samples
from pipeline.storage import Location
from pipeline.storage.location import StorageError

BlockName = tuple[int, int]  # (view, block)
Elsewhere = Mapping[int, Samples]  # view -> samples, ascending


@dataclass(frozen=True, order=True)
class Job:
    """One block of one view, samples `start` to `stop`, for every teacher that still needs it.

    `elsewhere` names the samples that a teacher's columns over other data hold already.
    """

    view: int
    block: int
    start: int
    stop: int
    teachers: tuple[str, ...]
    elsewhere: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def samples(self) -> range:
        """The sample numbers it is about."""
        return range(self.start, self.stop)

    def left_out(self, teacher: str) -> frozenset[int]:
        """The samples that `teacher` has elsewhere."""
        return frozenset(sample for name, samples in self.elsewhere if name == teacher for sample in samples)

    @property
    def name(self) -> str:
        """Such as `v000-b000012 from 6144`, unique among the jobs of a run but for its teachers."""
        return f"{record_name(self.view, self.block)} from {self.start}"


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher: blocks planned in all, those pending, and the samples of these."""

    manifest: Manifest
    planned: int
    pending: int
    samples: int

    @classmethod
    def of(cls, name: str, manifest: Manifest, planned: int, jobs: Iterable[Job]) -> "TeacherPlan":
        """The plan of a teacher called `name` in the jobs."""
        mine = [job for job in jobs if name in job.teachers]
        return cls(manifest, planned, len(mine), sum(len(job.samples) - len(job.left_out(name)) for job in mine))

    @property
    def nbytes(self) -> int:
        """Bytes still to be written, before any lossless codec."""
        return self.samples * (self.manifest.layout.nbytes + ROW.itemsize)


@dataclass(frozen=True)
class ExtractionPlan:
    """All that a run will do. `samples` are how many of one view it covers, `images` how many views it decodes."""

    teachers: Mapping[str, TeacherPlan]
    jobs: tuple[Job, ...]
    samples: int

    @property
    def images(self) -> int:
        """Views to decode."""
        return sum(len(job.samples) for job in self.jobs)

    @property
    def nbytes(self) -> int:
        """Bytes still to be written, before any lossless codec."""
        return sum(teacher.nbytes for teacher in self.teachers.values())

    def lines(self) -> list[str]:
        """For the screen: what is there, what is missing, bytes."""
        lines = []
        for name, teacher in self.teachers.items():
            done, random = teacher.planned - teacher.pending, " RANDOM weights" if teacher.manifest.random else ""
            missing = f"{teacher.samples:,} images in {teacher.pending} blocks to do, {gigabytes(teacher.nbytes)}"
            state = missing if teacher.pending else "nothing to do"
            lines.append(f"{name}{random}: {done} of {teacher.planned} blocks are there; {state}")
        return lines


def make_plan(
    targets: Mapping[str, ExtractionTarget],
    *,
    views: int,
    limit: int | None,
    elsewhere: Mapping[str, Elsewhere] | None = None,
) -> ExtractionPlan:
    """Compare what is planned with what is recorded, here and, by teacher, `elsewhere`."""
    layouts = {name: target.manifest.layout for name, target in targets.items()}
    planned = {name: _planned(layout, views, limit) for name, layout in layouts.items()}
    pending = {
        name: set(target.column.pending(views, limit=limit) if target.column else planned[name])
        for name, target in targets.items()
    }
    jobs = make_jobs(pending, layouts, limit=limit, elsewhere=elsewhere or {})
    plans = {name: TeacherPlan.of(name, target.manifest, len(planned[name]), jobs) for name, target in targets.items()}
    return ExtractionPlan(plans, jobs, max(_stop(limit, layout.samples) for layout in layouts.values()))


def _planned(layout: ColumnLayout, views: int, limit: int | None) -> list[BlockName]:
    blocks = -(-_stop(limit, layout.samples) // layout.block)
    return [(view, block) for view in range(views) for block in range(blocks)]


def make_jobs(
    pending: Mapping[str, set[BlockName]],
    layouts: Mapping[str, ColumnLayout],
    *,
    limit: int | None,
    elsewhere: Mapping[str, Elsewhere],
) -> tuple[Job, ...]:
    """One job for each pending block, with all the teachers whose columns have blocks of that size."""
    jobs = []
    for size in sorted({layout.block for layout in layouts.values()}):
        names = [name for name, layout in layouts.items() if layout.block == size]
        for view, block in sorted(set().union(*(pending[name] for name in names))):
            samples = layouts[names[0]].block_samples(block)
            needing = tuple(name for name in names if (view, block) in pending[name])
            stop = _stop(limit, samples.stop)
            away = {name: _within(elsewhere.get(name, {}), view, samples.start, stop) for name in needing}
            jobs.append(Job(view, block, samples.start, stop, needing, tuple(item for item in away.items() if item[1])))
    return tuple(sorted(jobs))


def refuse_small_disk(plan: ExtractionPlan, location: Location) -> None:
    """StorageError where the disk has less room than the plan needs."""
    free = location.free_space()
    if free is not None and plan.nbytes > free:
        raise StorageError(
            f"{location}: {gigabytes(plan.nbytes)} to write and {gigabytes(free)} free; make room, choose a smaller "
            "encoding or --limit, or start anyway with --ignore-space"
        )


def gigabytes(count: float) -> str:
    """Such as `13.6 TB`, `4.2 GB`, `12 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def _within(elsewhere: Elsewhere, view: int, start: int, stop: int) -> tuple[int, ...]:
    """The samples of one block."""
    if view not in elsewhere:
        return ()
    first, last = np.searchsorted(elsewhere[view], (start, stop))
    return tuple(elsewhere[view][first:last].tolist())


def _stop(limit: int | None, stop: int) -> int:
    return stop if limit is None else min(limit, stop)
