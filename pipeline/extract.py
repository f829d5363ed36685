"""Stage 1: run frozen teachers once over image shards and keep their features; running it again is how one resumes."""

import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from uuid import uuid4

from pipeline.cache.folder import Cache
from pipeline.cache.quarantine import quarantine
from pipeline.cache.records import Absent
from pipeline.cache.spec import load_spec
from pipeline.cluster import Cluster, open_cluster
from pipeline.extraction.calibrate import calibrate, uncalibrated
from pipeline.extraction.columns import Target, chosen_teachers, find_index, open_targets
from pipeline.extraction.config import ExtractConfig, Voice
from pipeline.extraction.drive import ExtractionError, ask, forget, interruptible, outcomes
from pipeline.extraction.measure import measure_speed
from pipeline.extraction.plan import make_plan, refuse_small_disk
from pipeline.extraction.report import ExtractReport, Tally, bad_lines, write_report
from pipeline.extraction.worker import Run, surroundings
from pipeline.images.index import ShardIndex
from pipeline.images.source import find_images
from pipeline.storage import StorageError
from sak.errors import SakError

_MARGIN_SECONDS = 0.5
_WARM_UP = 256


def extract(config: ExtractConfig, voice: Voice | None = None) -> ExtractReport:
    """Fill the cache with what the spec asks for and is not there yet; see `ExtractConfig`.

    SakError, one line, where it cannot start or go on: what was finished by then is kept. KeyboardInterrupt on Ctrl-C
    and SIGTERM, likewise.
    """
    voice = voice or Voice()
    with interruptible():
        spec = load_spec(config.spec, config.overrides)
        names = chosen_teachers(spec, config.teachers)
        cache = Cache.create(config.cache)
        index = find_index(cache, config.data, voice)
        targets = open_targets(cache, spec, names, index, begin=not config.dry_run, lease_seconds=config.lease_seconds)
        remove_leftovers(targets)
        plan = make_plan(targets, views=config.views, limit=config.limit)
        for line in plan.lines():
            voice.say(line)
        tally = Tally(plan, _quarantined(targets))
        if not plan.jobs:
            return tally.report("nothing to do")
        if not config.ignore_space:
            refuse_small_disk(plan, cache.top.location)
        with open_cluster(config.cluster) as cluster:
            run = make_run(config, cache, index, targets, cluster)
            return _run(config, run, cluster, targets, tally, voice)


def _run(
    config: ExtractConfig, run: Run, cluster: Cluster, targets: Mapping[str, Target], tally: Tally, voice: Voice
) -> ExtractReport:
    plan = tally.plan
    voice.say(f"{cluster.workers} workers on {cluster.device}, dashboard {cluster.dashboard or 'not available'}")
    needed = tuple(name for name, teacher in plan.teachers.items() if teacher.pending)
    first = plan.jobs[0]
    speed = ask(cluster, measure_speed, run, needed, tuple(first.samples[:_WARM_UP]), first.view)
    for line in speed.lines(plan, cluster.workers) if speed.forward else ():
        voice.say(line)
    if config.dry_run:
        return tally.report("dry run: nothing was written")
    if missing := uncalibrated(targets, needed):
        voice.say(f"Calibrating {', '.join(missing)}")
        ask(cluster, calibrate, run, missing)
    report = carry_out(config, run, cluster, tally, voice)
    forget(cluster, run)
    return report


def carry_out(config: ExtractConfig, run: Run, cluster: Cluster, tally: Tally, voice: Voice) -> ExtractReport:
    """Run the plan's jobs; whatever ends them, what was done is reported in the cache."""
    status = "stopped"
    try:
        refuse_bad_data(tally, config.max_bad)
        with closing(outcomes(cluster, run, tally.plan.jobs)) as results:
            for outcome in results:
                tally.add(outcome)
                voice.progress(tally.attempted, tally.plan.images, tally.stages.note())
                refuse_bad_data(tally, config.max_bad)
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except SakError as error:
        status = f"stopped: {error}"
        raise
    finally:
        report = tally.report(
            status,
            workers=cluster.workers,
            surroundings=surroundings("cpu") | {"device": cluster.device},
            columns={name: f"columns/{manifest.name}" for name, manifest in run.manifests.items()},
            config={name: str(value) for name, value in asdict(config).items()},
        )
        with suppress(StorageError):  # a full disk has been told already, or is what we are being stopped by
            report = write_report(report, Cache.open(config.cache).top.location, run.id)
    return report


def make_run(
    config: ExtractConfig, cache: Cache, index: ShardIndex, targets: Mapping[str, Target], cluster: Cluster
) -> Run:
    """What workers must know."""
    return Run(
        id=uuid4().hex[:12],
        cache=tuple(layer.location.url for layer in cache.layers),
        data=find_images(config.data).data,
        data_key=index.data_key(),
        manifests={name: target.manifest for name, target in targets.items()},
        device=cluster.device,
        batch_size=config.batch_size,
        decode_threads=cluster.threads,
        lease_seconds=config.lease_seconds,
    )


def remove_leftovers(targets: Mapping[str, Target]) -> None:
    """Remove the scratch files of writers that died: those older than now, in columns that nobody writes."""
    now = time.time()
    for target in targets.values():
        if target.column is not None and not target.column.leases.held():
            target.column.column.location.remove_scratch(time.time() - now + _MARGIN_SECONDS)


def refuse_bad_data(tally: Tally, max_bad: float) -> None:
    """ExtractionError, listing them, once more than `max_bad` of the samples are unusable."""
    if len(tally.bad) > max_bad * tally.plan.samples:
        raise ExtractionError(
            f"{len(tally.bad)} of {tally.plan.samples} images cannot be used, more than --max-bad {max_bad:g} allows; "
            f"look at the data, or raise it: {'; '.join(line.strip() for line in bad_lines(tally.bad))}"
        )


def _quarantined(targets: Mapping[str, Target]) -> tuple[Absent, ...]:
    """What earlier runs found unusable."""
    columns = [target.column.column.fresh() for target in targets.values() if target.column is not None]
    return tuple(Absent(each.sample, each.key, each.reason) for each in quarantine(columns))
