"""`cache repair`: find what is damaged, and make exactly that again, as it was made.

First what concerns whole columns: manifests, from the spec, and calibrations, from the images; then damaged blocks.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from pipeline.cache.column import CALIBRATION, record_block
from pipeline.cache.folder import Cache, CacheFolder, ColumnId, split_overlay
from pipeline.cache.key import canonical_json
from pipeline.cache.lease import SECONDS
from pipeline.cache.manifest import MANIFEST
from pipeline.cache.records import BlockRecord, from_ranges, record_name
from pipeline.cache.spec import load_spec
from pipeline.cache.stores.base import DamageError
from pipeline.cache.tools.verify import Problem, Verification, verify
from pipeline.cache.writer import WritableColumn
from pipeline.cluster import Cluster, ClusterConfig, open_cluster
from pipeline.extract.calibrate import calibrate, measure_speed
from pipeline.extract.columns import make_manifest, remove_leftovers, samples_elsewhere
from pipeline.extract.dispatch import ask, interruptible
from pipeline.extract.plan import ExtractionPlan, Job, TeacherPlan
from pipeline.extract.report import ExtractReport, Tally
from pipeline.extract.stage import run_jobs
from pipeline.extract.worker import ExtractionRun, identify
from pipeline.progress import Messages, Say
from sak.errors import UsageError

Damaged = tuple[ColumnId, int, int]  # (column, view, block)


@dataclass(frozen=True)
class RepairConfig:
    """What to mend: one cache folder. `data`: where the images are now, by default where they were indexed.

    `batch_size` is used for blocks whose record does not say theirs any more. `spec` is the one that made the cache,
    needed where a manifest is damaged.
    """

    cache: str
    data: str | None = None
    spec: str | Path | None = None
    batch_size: int = 32
    lease_seconds: float = SECONDS
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class RepairReport:
    """What was damaged, which blocks were extracted again, and what is still wrong afterwards."""

    found: tuple[Problem, ...]
    blocks: tuple[Damaged, ...]
    left: tuple[Problem, ...]
    runs: tuple[ExtractReport, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.left

    def to_text(self) -> str:
        """For the screen."""
        lines = [f"{len(self.found)} problems were found, {len(self.blocks)} blocks extracted again"]
        lines += [f"  {path.path} {record_name(view, block)}" for path, view, block in self.blocks]
        if self.left:
            lines += [f"{len(self.left)} problems are left:", *(f"  {bad.file}: {bad.what}" for bad in self.left)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Lost:
    """A block to be extracted again: its column, and which samples it had attempted with which batch size."""

    column: WritableColumn
    view: int
    block: int
    stop: int
    batch_size: int
    elsewhere: tuple[int, ...]

    @property
    def path(self) -> ColumnId:
        """Its column's folders."""
        return self.column.column.id

    @property
    def name(self) -> str:
        """What a run calls its column."""
        return self.column.manifest.name

    @property
    def span(self) -> tuple[int, int, int, int]:
        """View, block, first sample and one past the last: columns that agree in it share a job."""
        return self.view, self.block, self.column.manifest.layout.block_samples(self.block).start, self.stop

    @property
    def together(self) -> tuple[str, str, int]:
        """Blocks that agree in this can be mended in one run: same images, same views, same batches."""
        manifest = self.column.manifest
        return manifest.data_key, canonical_json(manifest.document["views"]), self.batch_size


def repair(config: RepairConfig, messages: Messages | None = None) -> RepairReport:
    """Verify deeply, extract damaged blocks again, verify again; what cannot be mended so is listed in `left`.

    A damaged block's record goes only once its images and teachers are known to be there. SakError where they are not.
    """
    messages = messages or Messages()
    if len(split_overlay(config.cache)) > 1:
        raise UsageError(f"{config.cache}: give one cache folder; repair them one by one")
    with interruptible():
        cache = Cache.open(config.cache)
        before = verify(cache, deep=True, progress=messages.progress)
        if before.sound:
            return RepairReport((), (), ())
        still = _restore_columns(cache, before, config, messages)
        lost = [_lost(cache, damaged, config) for damaged in _repairable(cache.top, still)]
        runs = _extract_again(cache, lost, config, messages) if lost else ()
        after = verify(cache, deep=True, progress=messages.progress)
    blocks = tuple((block.path, block.view, block.block) for block in lost)
    return RepairReport(before.problems, blocks, after.problems, runs)


def _restore_columns(
    cache: Cache, verification: Verification, config: RepairConfig, messages: Messages
) -> Verification:
    """Make again what concerns columns as a whole; what is wrong after that."""
    _rewrite_metadata(cache.top, verification)
    if config.spec is not None and _restore_manifests(cache, verification, str(config.spec), messages.say):
        verification = verify(Cache.open(config.cache), deep=True, progress=messages.progress)
    uncalibrated = _columns_with_bad(verification, CALIBRATION) - _columns_with_bad(verification, MANIFEST)
    if not uncalibrated:
        return verification
    with open_cluster(config.cluster) as cluster:
        for path in sorted(uncalibrated, key=lambda path: path.path):
            column = _writable(cache, path, config)
            run = _run(cache, [column], _usual_batch(column, config.batch_size), config, cluster)
            _restore_calibration(column, run, cluster, messages.say)
    return verify(cache, deep=True, progress=messages.progress)


def _columns_with_bad(verification: Verification, *files: str) -> set[ColumnId]:
    """The columns in which one of `files` has a problem."""
    ends = tuple(f"/{file}" for file in files)
    return {
        ColumnId(problem.column, problem.data)
        for problem in verification.problems
        if problem.column and problem.data and problem.file.endswith(ends)
    }


def _rewrite_metadata(folder: CacheFolder, verification: Verification) -> None:
    """Arrays' metadata follow from the manifest alone."""
    for path in _columns_with_bad(verification, "zarr.json"):
        column = WritableColumn.create_or_open(Cache((folder,)), folder.manifest(path)).column
        blocks = map(record_block, column.location.list("records"))
        column.store.prepare(max((block[0] for block in blocks if block), default=0) + 1)


def _restore_manifests(cache: Cache, verification: Verification, spec: str, say: Say) -> int:
    """Write the damaged manifests of the columns that `spec` describes; how many.

    The column's folder names the key of its content, so a spec that describes anything else does not fit. Block size,
    codec and format are the spec's: where they were different, the blocks are damaged after that.
    """
    restored, wanted = 0, load_spec(spec)
    for path in sorted(_columns_with_bad(verification, MANIFEST), key=lambda path: path.path):
        if path.teacher not in wanted.teachers:
            continue
        identity = identify(cache.top, wanted, path.teacher)
        manifest = make_manifest(wanted, path.teacher, identity, cache.index(path.data))
        if ColumnId.of(manifest) != path:
            say(f"{path.path}: {spec} describes {manifest.name}, another column; its manifest stays damaged")
            continue
        cache.top.at(path).write_bytes(MANIFEST, manifest.to_bytes())
        say(f"{path.path}: manifest written again, from {spec}")
        restored += 1
    return restored


def _restore_calibration(column: WritableColumn, run: ExtractionRun, cluster: Cluster, say: Say) -> None:
    """Calibrate a column again; what was there stays unless it comes out as the column's blocks were encoded with."""
    location, name = column.column.location, column.manifest.name
    wanted = {record.calibration for record in _readable_records(column)} - {None}
    damaged = location.read_bytes(CALIBRATION) if location.exists(CALIBRATION) else None
    location.delete(CALIBRATION)
    ask(cluster, calibrate, run, (name,))
    made = column.calibration()
    if made is not None and wanted <= {made.digest}:
        say(f"columns/{name}: calibrated again, to what it was")
        return
    location.delete(CALIBRATION)
    if damaged is not None:
        location.write_bytes(CALIBRATION, damaged)
    say(
        f"columns/{name}: calibrating gives other statistics here than those its blocks were encoded with (other "
        "software or hardware); prune the column and extract it again"
    )


def _readable_records(column: WritableColumn) -> Iterator[BlockRecord]:
    """The records that are not damaged; the blocks of the others are extracted again."""
    for name in column.column.location.list("records"):
        with suppress(DamageError):
            yield column.column.read_record(name)


def _usual_batch(column: WritableColumn, default: int) -> int:
    """The batch size of the column's first block that can still be read."""
    return next((_batch_size(record, default) for record in _readable_records(column)), default)


def _batch_size(record: BlockRecord, default: int) -> int:
    return int(record.facts.get("batch_size_asked", default))


def _repairable(folder: CacheFolder, verification: Verification) -> list[Damaged]:
    """Damaged blocks of columns whose manifests and calibrations can still be read: others could not be made again."""
    readable = set(folder.columns()) - _columns_with_bad(verification, MANIFEST, CALIBRATION)
    return [damaged for damaged in verification.damaged_blocks if damaged[0] in readable]


def _lost(cache: Cache, damaged: Damaged, config: RepairConfig) -> _Lost:
    path, view, block = damaged
    column = _writable(cache, path, config)
    batch_size = _usual_batch(column, config.batch_size)
    samples = column.manifest.layout.block_samples(block)
    with suppress(DamageError):
        record = column.column.record(view, block)
        if record is not None:
            stop, batch_size = _attempted(record) or samples.stop, _batch_size(record, batch_size)
            return _Lost(column, view, block, stop, batch_size, tuple(from_ranges(record.elsewhere).tolist()))
    held = samples_elsewhere(cache, column.manifest, cache.index(path.data), view + 1)[view]
    held = held[(held >= samples.start) & (held < samples.stop)]
    return _Lost(column, view, block, samples.stop, batch_size, tuple(held.tolist()))


def _writable(cache: Cache, path: ColumnId, config: RepairConfig) -> WritableColumn:
    return WritableColumn.create_or_open(cache, cache.top.manifest(path), lease_seconds=config.lease_seconds)


def _attempted(record: BlockRecord) -> int:
    """One past the last sample that a block had attempted."""
    ends = [stop for _, stop in (*record.present, *record.elsewhere)]
    return max([*ends, *(bad.sample + 1 for bad in record.absent)], default=0)


def _extract_again(
    cache: Cache, lost: Sequence[_Lost], config: RepairConfig, messages: Messages
) -> tuple[ExtractReport, ...]:
    remove_leftovers({block.path: block.column for block in lost}.values())
    with open_cluster(config.cluster) as cluster:
        groups = groupby(sorted(lost, key=attrgetter("together")), key=attrgetter("together"))
        return tuple(_mend(cache, list(group), config, cluster, messages) for _, group in groups)


def _mend(
    cache: Cache, lost: Sequence[_Lost], config: RepairConfig, cluster: Cluster, messages: Messages
) -> ExtractReport:
    """Extract the blocks of one group again; `run_jobs` reports them as any other run."""
    run = _run(cache, [block.column for block in lost], lost[0].batch_size, config, cluster)
    plan = _plan(lost)
    first = plan.jobs[0]
    # Loads every teacher: the records go only once it is known that all can be made again.
    ask(cluster, measure_speed, run, tuple(run.manifests), tuple(first.samples[:1]), first.view)
    for block in lost:
        block.column.withdraw(block.view, block.block)
    return run_jobs(run, cluster, Tally(plan, ()), messages, max_bad=1.0, config=vars(config))


def _run(
    cache: Cache, columns: Sequence[WritableColumn], batch_size: int, config: RepairConfig, cluster: Cluster
) -> ExtractionRun:
    """What workers must know of columns of the same images; StaleIndexError where these are not there any more."""
    index = cache.index(columns[0].manifest.data_key)
    if config.data is None:
        index.check_shards()
    else:
        index = index.relocated(config.data)
    manifests = {column.manifest.name: column.manifest for column in columns}
    return ExtractionRun.on(cluster, cache, index, manifests, batch_size=batch_size, lease_seconds=config.lease_seconds)


def _plan(lost: Sequence[_Lost]) -> ExtractionPlan:
    """A job for every block, with all the columns that lost it."""
    jobs = []
    for (view, block, start, stop), group in groupby(sorted(lost, key=attrgetter("span")), key=attrgetter("span")):
        parts = list(group)
        elsewhere = tuple((part.name, part.elsewhere) for part in parts if part.elsewhere)
        jobs.append(Job(view, block, start, stop, tuple(part.name for part in parts), elsewhere))
    manifests = {part.name: part.column.manifest for part in lost}
    counts = Counter(part.name for part in lost)
    teachers = {name: TeacherPlan.of(name, manifest, counts[name], jobs) for name, manifest in manifests.items()}
    return ExtractionPlan(teachers, tuple(jobs), max(manifest.layout.samples for manifest in manifests.values()))
