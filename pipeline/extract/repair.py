"""`cache repair`: find what is damaged, and make exactly that again, as it was made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pipeline.cache.column import CALIBRATION
from pipeline.cache.folder import Cache, CacheFolder, ColumnPath, split_overlay
from pipeline.cache.key import canonical_json
from pipeline.cache.lease import SECONDS
from pipeline.cache.manifest import MANIFEST
from pipeline.cache.records import BlockRecord, from_ranges, record_name
from pipeline.cache.spec import load_spec
from pipeline.cache.stores.base import ROW, DamageError
from pipeline.cache.tools.verify import Problem, Verification, verify
from pipeline.cache.writer import WritableColumn
from pipeline.cluster import Cluster, ClusterConfig, open_cluster
from pipeline.extract.calibrate import calibrate, measure_speed
from pipeline.extract.columns import Messages, make_manifest, remove_leftovers, samples_elsewhere
from pipeline.extract.dispatch import ask, interruptible
from pipeline.extract.plan import ExtractionPlan, Job, TeacherPlan
from pipeline.extract.report import ExtractReport, Tally
from pipeline.extract.stage import carry_out
from pipeline.extract.worker import ExtractionRun, identify
from sak.errors import UsageError

# What `cache repair` makes again before any block: manifests, from the spec, and calibrations, from the images.


def columns_struck(problems: Iterable[Problem], file: str) -> set[ColumnPath]:
    """The columns whose `file` has a problem."""
    return {
        ColumnPath(problem.column, problem.data)
        for problem in problems
        if problem.column and problem.data and problem.file.endswith(f"/{file}")
    }


def restore_manifests(cache: Cache, problems: Iterable[Problem], spec: str, voice: Messages) -> int:
    """Write the damaged manifests of the columns that `spec` describes; how many.

    The column's folder names the key of its content, so a spec that describes anything else does not fit. Block size,
    codec and format are the spec's: where they were others, the blocks will be found damaged.
    """
    restored, wanted = 0, load_spec(spec)
    for place in sorted(columns_struck(problems, MANIFEST), key=lambda each: each.path):
        if place.teacher not in wanted.teachers:
            continue
        manifest = make_manifest(
            wanted, place.teacher, identify(cache.top, wanted, place.teacher), cache.index(place.data)
        )
        if ColumnPath.of(manifest) != place:
            voice.say(f"{place.path}: {spec} describes {manifest.name}, another column; its manifest stays damaged")
            continue
        cache.top.at(place).write_bytes(MANIFEST, manifest.to_bytes())
        voice.say(f"{place.path}: manifest written again, from {spec}")
        restored += 1
    return restored


def restore_calibration(column: WritableColumn, run: ExtractionRun, cluster: Cluster, voice: Messages) -> bool:
    """Calibrate a column again whose calibration is damaged; whether it came out as its blocks were encoded with."""
    location, name = column.column.location, column.manifest.name
    wanted = _digests(column)
    damaged = location.read_bytes(CALIBRATION) if location.exists(CALIBRATION) else None
    location.delete(CALIBRATION)
    ask(cluster, calibrate, run, (name,))
    made = column.calibration()
    if made is not None and wanted <= {made.digest}:
        voice.say(f"columns/{name}: calibrated again, to what it was")
        return True
    location.delete(CALIBRATION)
    if damaged is not None:
        location.write_bytes(CALIBRATION, damaged)
    voice.say(
        f"columns/{name}: calibrating gives other statistics here than those its blocks were encoded with (other "
        "software or hardware); prune the column and extract it again"
    )
    return False


def _digests(column: WritableColumn) -> set[str]:
    """The calibrations that the column's records name."""
    found = set()
    for name in column.column.location.list("records"):
        try:
            found.add(column.column.read_record(name).calibration)
        except DamageError:
            continue  # its block is extracted again
    return {digest for digest in found if digest is not None}


Damaged = tuple[ColumnPath, int, int]  # (column, view, block)


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
        lines += [f"  {place.path} {record_name(view, block)}" for place, view, block in self.blocks]
        if self.left:
            lines += [f"{len(self.left)} problems are left:", *(f"  {each.file}: {each.what}" for each in self.left)]
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
    def damaged(self) -> Damaged:
        """What it is called."""
        return self.column.column.place, self.view, self.block

    @property
    def together(self) -> tuple[str, str, int]:
        """Blocks that agree in this can be mended in one run: same images, same views, same batches."""
        manifest = self.column.manifest
        return manifest.data_key, canonical_json(manifest.document["views"]), self.batch_size


def repair(config: RepairConfig, voice: Messages | None = None) -> RepairReport:
    """Verify deeply, extract damaged blocks again, verify again; what cannot be mended so is listed in `left`.

    A damaged block's record goes only once its images and teachers are known to be there. SakError where they are not.
    """
    voice = voice or Messages()
    if len(split_overlay(config.cache)) > 1:
        raise UsageError(f"{config.cache}: give one cache folder; repair them one by one")
    with interruptible():
        cache = Cache.open(config.cache)
        before = verify(cache, deep=True, progress=voice.progress)
        if before.sound:
            return RepairReport((), (), ())
        now = _restore(cache, before, config, voice)
        lost = [_lost(cache, each, config) for each in _repairable(cache.top, now)]
        runs = _extract_again(cache, lost, config, voice) if lost else ()
        after = verify(cache, deep=True, progress=voice.progress)
    return RepairReport(before.problems, tuple(each.damaged for each in lost), after.problems, runs)


def _restore(cache: Cache, found: Verification, config: RepairConfig, voice: Messages) -> Verification:
    """Make again what concerns columns as a whole; what is wrong after that."""
    _rewrite_metadata(cache.top, found.problems)
    if config.spec is not None and restore_manifests(cache, found.problems, str(config.spec), voice):
        found = verify(Cache.open(config.cache), deep=True, progress=voice.progress)
    places = columns_struck(found.problems, CALIBRATION) - columns_struck(found.problems, MANIFEST)
    if not places:
        return found
    with open_cluster(config.cluster) as cluster:
        for place in sorted(places, key=lambda each: each.path):
            column = _writable(cache, place, config)
            run = _run(cache, [column], _usual_batch(column, config.batch_size), config, cluster)
            restore_calibration(column, run, cluster, voice)
    return verify(cache, deep=True, progress=voice.progress)


def _repairable(folder: CacheFolder, found: Verification) -> list[Damaged]:
    """Damaged blocks of columns whose manifests and calibrations can still be read: others could not be made again."""
    broken = columns_struck(found.problems, MANIFEST) | columns_struck(found.problems, CALIBRATION)
    return [
        damaged_block
        for damaged_block in found.damaged_blocks
        if damaged_block[0] not in broken and damaged_block[0] in set(folder.columns())
    ]


def _rewrite_metadata(folder: CacheFolder, problems: Iterable[Problem]) -> None:
    """Arrays' metadata follow from the manifest alone."""
    damaged = [
        problem for problem in problems if problem.file.endswith("zarr.json") and problem.column and problem.data
    ]
    for place in {ColumnPath(each.column, each.data) for each in damaged if each.column and each.data}:
        column = WritableColumn.create_or_open(Cache((folder,)), folder.manifest(place)).column
        names = folder.at(place).list("records")
        views = [int(name[1:4]) for name in names if name.startswith("v") and name[1:4].isdecimal()]
        column.store.prepare(max(views, default=0) + 1)


def _lost(cache: Cache, damaged: Damaged, config: RepairConfig) -> _Lost:
    place, view, block = damaged
    column = _writable(cache, place, config)
    manifest = column.manifest
    samples = manifest.layout.block_samples(block)
    stop, batch_size = samples.stop, _usual_batch(column, config.batch_size)
    try:
        record = column.column.record(view, block)
    except DamageError:
        record = None
    if record is not None:
        stop = _attempted(record) or stop
        batch_size = int(record.facts.get("batch_size_asked", batch_size))
        elsewhere = from_ranges(record.elsewhere)
    else:
        found = samples_elsewhere(cache, manifest, cache.index(manifest.data_key), view + 1)[view]
        elsewhere = found[(found >= samples.start) & (found < stop)]
    return _Lost(column, view, block, stop, batch_size, tuple(elsewhere.tolist()))


def _writable(cache: Cache, place: ColumnPath, config: RepairConfig) -> WritableColumn:
    return WritableColumn.create_or_open(cache, cache.top.manifest(place), lease_seconds=config.lease_seconds)


def _attempted(record: BlockRecord) -> int:
    """One past the last sample that a block had attempted."""
    ends = [stop for _, stop in (*record.present, *record.elsewhere)]
    return max([*ends, *(each.sample + 1 for each in record.absent)], default=0)


def _usual_batch(column: WritableColumn, default: int) -> int:
    """The batch size of the column's first block that can still be read."""
    for name in column.column.location.list("records"):
        try:
            return int(column.column.read_record(name).facts.get("batch_size_asked", default))
        except DamageError:
            continue
    return default


def _extract_again(
    cache: Cache, lost: Sequence[_Lost], config: RepairConfig, voice: Messages
) -> tuple[ExtractReport, ...]:
    groups: dict[tuple[str, str, int], list[_Lost]] = {}
    for each in lost:
        groups.setdefault(each.together, []).append(each)
    remove_leftovers({each.column.manifest.name: each.column for each in lost}.values())
    with open_cluster(config.cluster) as cluster:
        return tuple(_mend(cache, group, config, cluster, voice) for group in groups.values())


def _mend(
    cache: Cache, lost: Sequence[_Lost], config: RepairConfig, cluster: Cluster, voice: Messages
) -> ExtractReport:
    """Extract the blocks of one group again; `carry_out` reports them as any other run."""
    run = _run(cache, [each.column for each in lost], lost[0].batch_size, config, cluster)
    plan = _plan(lost)
    first = plan.jobs[0]
    ask(cluster, measure_speed, run, tuple(run.manifests), tuple(first.samples[:1]), first.view)
    for each in lost:
        each.column.withdraw(each.view, each.block)
    return carry_out(run, cluster, Tally(plan, ()), voice, max_bad=1.0, config=vars(config))


def _run(
    cache: Cache, columns: Sequence[WritableColumn], batch_size: int, config: RepairConfig, cluster: Cluster
) -> ExtractionRun:
    """What workers must know of columns of the same images; StaleIndexError where these are not there any more."""
    index = cache.index(columns[0].manifest.data_key)
    if config.data is None:
        index.check_shards()
    else:
        index = index.relocated(config.data)
    return ExtractionRun(
        id=uuid4().hex[:12],
        cache=tuple(layer.location.url for layer in cache.layers),
        data=index.data,
        data_key=index.data_key(),
        manifests={column.manifest.name: column.manifest for column in columns},
        device=cluster.device,
        batch_size=batch_size,
        decode_threads=cluster.threads,
        lease_seconds=config.lease_seconds,
    )


def _plan(lost: Sequence[_Lost]) -> ExtractionPlan:
    jobs: dict[tuple[int, int, int, int], list[_Lost]] = {}
    by_column: dict[str, list[_Lost]] = {}
    for each in lost:
        manifest = each.column.manifest
        start = manifest.layout.block_samples(each.block).start
        jobs.setdefault((each.view, each.block, start, each.stop), []).append(each)
        by_column.setdefault(manifest.name, []).append(each)
    made = [_job(place, blocks) for place, blocks in jobs.items()]
    return ExtractionPlan(
        _teacher_plans(by_column), tuple(sorted(made)), max(each.column.manifest.layout.samples for each in lost)
    )


def _job(place: tuple[int, int, int, int], blocks: Sequence[_Lost]) -> Job:
    names = tuple(block.column.manifest.name for block in blocks)
    elsewhere = tuple((each.column.manifest.name, each.elsewhere) for each in blocks if each.elsewhere)
    return Job(*place, names, elsewhere)


def _teacher_plans(by_column: Mapping[str, Sequence[_Lost]]) -> dict[str, TeacherPlan]:
    plans = {}
    for name, blocks in by_column.items():
        layout = blocks[0].column.manifest.layout
        samples = sum(block.stop - layout.block_samples(block.block).start for block in blocks)
        pending = tuple((each.view, each.block) for each in blocks)
        nbytes = samples * (layout.nbytes + ROW.itemsize)
        plans[name] = TeacherPlan(blocks[0].column.manifest, len(blocks), pending, samples, nbytes)
    return plans
