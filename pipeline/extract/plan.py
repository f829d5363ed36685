"""What is left to do: pending = planned - recorded, as jobs; and what it will weigh."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.cache.manifest import Manifest
from pipeline.cache.records import record_name
from pipeline.cache.stores.base import ROW, ColumnLayout
from pipeline.extract.columns import Samples, Target
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
        """Such as `v000-b000012 of 512`, unique among the jobs of a run but for its teachers."""
        return f"{record_name(self.view, self.block)} from {self.start}"


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher: blocks planned in all, those pending, and their samples and bytes."""

    manifest: Manifest
    planned: int
    pending: tuple[BlockName, ...]
    samples: int
    nbytes: int


@dataclass(frozen=True)
class ExtractionPlan:
    """All that a run will do. `samples` are those of one view that it covers, `images` how many views it decodes."""

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
            there, random = teacher.planned - len(teacher.pending), " RANDOM weights" if teacher.manifest.random else ""
            missing = f"{teacher.samples:,} images in {len(teacher.pending)} blocks to do, {gigabytes(teacher.nbytes)}"
            state = missing if teacher.pending else "nothing to do"
            lines.append(f"{name}{random}: {there} of {teacher.planned} blocks are there; {state}")
        return lines


def make_plan(
    targets: Mapping[str, Target],
    *,
    views: int,
    limit: int | None,
    elsewhere: Mapping[str, Elsewhere] | None = None,
) -> ExtractionPlan:
    """Compare what is planned with what is recorded, here and, by teacher, `elsewhere`."""
    away = elsewhere or {}
    teachers = {name: _teacher_plan(target, views, limit, away.get(name, {})) for name, target in targets.items()}
    covered = max(_stop(limit, target.manifest.layout.samples) for target in targets.values())
    pending = {name: set(plan.pending) for name, plan in teachers.items()}
    layouts = {name: plan.manifest.layout for name, plan in teachers.items()}
    return ExtractionPlan(teachers, make_jobs(pending, layouts, limit=limit, elsewhere=away), covered)


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
        for view, block in sorted({each for name in names for each in pending[name]}):
            samples = layouts[names[0]].block_samples(block)
            needing = tuple(name for name in names if (view, block) in pending[name])
            stop = _stop(limit, samples.stop)
            away = {name: _within(elsewhere.get(name, {}), view, samples.start, stop) for name in needing}
            held = tuple((name, found) for name, found in away.items() if found)
            jobs.append(Job(view, block, samples.start, stop, needing, held))
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


def _teacher_plan(target: Target, views: int, limit: int | None, elsewhere: Elsewhere) -> TeacherPlan:
    layout = target.manifest.layout
    blocks = -(-_stop(limit, layout.samples) // layout.block)
    if target.column is None:
        pending = [(view, block) for view in range(views) for block in range(blocks)]
    else:
        pending = target.column.pending(views, limit=limit)
    spans = [(view, layout.block_samples(block)) for view, block in pending]
    samples = sum(
        _stop(limit, span.stop) - span.start - len(_within(elsewhere, view, span.start, _stop(limit, span.stop)))
        for view, span in spans
    )
    return TeacherPlan(
        target.manifest, views * blocks, tuple(pending), samples, samples * (layout.nbytes + ROW.itemsize)
    )


def _within(elsewhere: Elsewhere, view: int, start: int, stop: int) -> tuple[int, ...]:
    """The samples of one block."""
    if view not in elsewhere:
        return ()
    first, last = np.searchsorted(elsewhere[view], (start, stop))
    return tuple(elsewhere[view][first:last].tolist())


def _stop(limit: int | None, stop: int) -> int:
    return stop if limit is None else min(limit, stop)
