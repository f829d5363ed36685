"""Stage 1: run frozen teachers once over image shards and keep their features; running it again is how one resumes.

`extract` finds out what is missing and has it made, `run_jobs` sees a plan through to its report.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing, suppress

from pipeline.cache.folder import Cache
from pipeline.cache.quarantine import quarantine
from pipeline.cache.records import Absent
from pipeline.cache.spec import load_spec
from pipeline.cache.writer import WritableColumn
from pipeline.cluster import Cluster, open_cluster, resolve_device
from pipeline.extract.calibrate import calibrate, measure_speed, uncalibrated
from pipeline.extract.columns import (
    ExtractConfig,
    ExtractionTarget,
    chosen_teachers,
    find_index,
    open_targets,
    remove_leftovers,
    samples_elsewhere,
)
from pipeline.extract.dispatch import ExtractionError, ask, forget, interruptible, outcomes
from pipeline.extract.plan import ExtractionPlan, make_plan, refuse_small_disk
from pipeline.extract.report import ExtractReport, Tally, bad_lines, write_report
from pipeline.extract.worker import ExtractionRun, identify, surroundings
from pipeline.images.index import ShardIndex
from pipeline.images.source import find_images
from pipeline.progress import Messages, Say
from pipeline.storage import StorageError, open_location
from sak.errors import SakError

_WARM_UP = 256  # images at most that the speed is measured with


def extract(config: ExtractConfig, messages: Messages | None = None) -> ExtractReport:
    """Fill the cache with what the spec asks for and is not there yet; see `ExtractConfig`.

    SakError, one line, where it cannot start or go on: what was finished by then is kept. KeyboardInterrupt on Ctrl-C
    and SIGTERM, likewise.
    """
    messages = messages or Messages()
    with interruptible():
        cache, index, targets = _open_columns(config, messages)
        columns = [target.column for target in targets.values() if target.column]
        if not config.dry_run:
            remove_leftovers(columns)
        elsewhere = {
            name: samples_elsewhere(cache, target.manifest, index, config.views) for name, target in targets.items()
        }
        plan = make_plan(targets, views=config.views, limit=config.limit, elsewhere=elsewhere)
        for line in plan.lines():
            messages.say(line)
        tally = Tally(plan, _quarantined(columns, plan.samples))
        refuse_bad_data(tally, config.max_bad)
        if not plan.jobs:
            return tally.report("nothing to do")
        if not config.dry_run:
            _refuse_small_disk(config, plan, cache)
        with open_cluster(config.cluster) as cluster:
            manifests = {name: target.manifest for name, target in targets.items()}
            run = ExtractionRun.on(
                cluster, cache, index, manifests, batch_size=config.batch_size, lease_seconds=config.lease_seconds
            )
            missing = uncalibrated({name: targets[name] for name, teacher in plan.teachers.items() if teacher.pending})
            _say_speed(run, cluster, plan, missing, messages.say)
            if config.dry_run:
                _refuse_small_disk(config, plan, cache)  # now that all else has been said
                return tally.report("dry run: no features were written")
            if missing:  # before any of their blocks
                messages.say(f"Calibrating {', '.join(missing)}")
                ask(cluster, calibrate, run, tuple(missing))
            report = run_jobs(run, cluster, tally, messages, max_bad=config.max_bad, config=vars(config))
            remove_leftovers(columns)  # of workers that died on the way
            return report


def _open_columns(config: ExtractConfig, messages: Messages) -> tuple[Cache, ShardIndex, dict[str, ExtractionTarget]]:
    """Cache, index and every teacher's column; what is cheap to check fails before all images are read."""
    spec = load_spec(config.spec, config.overrides)
    names = chosen_teachers(spec, config.teachers)
    find_images(config.data)  # a wrong location is an error before a cache is made
    cache = Cache.create(config.cache)
    if config.cluster.scheduler is None and not any(layer.data_keys() for layer in cache.layers):
        resolve_device(config.cluster.device)
    identities = {name: identify(cache.top, spec, name, messages.say) for name in names}
    index = find_index(cache, config.data, messages)
    begin, lease_seconds = not config.dry_run, config.lease_seconds
    return cache, index, open_targets(cache, spec, identities, index, begin=begin, lease_seconds=lease_seconds)


def _refuse_small_disk(config: ExtractConfig, plan: ExtractionPlan, cache: Cache) -> None:
    if not config.ignore_space:
        refuse_small_disk(plan, cache.top.location)


def _say_speed(
    run: ExtractionRun, cluster: Cluster, plan: ExtractionPlan, missing: Mapping[str, int], say: Say
) -> None:
    """Say where it will run and how long it will take, from a short measurement there."""
    plural = "s" * (cluster.workers != 1)
    say(f"{cluster.workers} worker{plural} on {cluster.device}; dashboard: {cluster.dashboard or 'none'}")
    needed = tuple(name for name, teacher in plan.teachers.items() if teacher.pending)
    first = plan.jobs[0]
    speed = ask(cluster, measure_speed, run, needed, tuple(first.samples[:_WARM_UP]), first.view)
    for line in speed.lines(plan, cluster.workers, missing):
        say(line)


def _quarantined(columns: Iterable[WritableColumn], samples: int) -> tuple[Absent, ...]:
    """What earlier runs found unusable of the first `samples`."""
    bad = quarantine(column.column.fresh() for column in columns)
    return tuple(Absent(image.sample, image.key, image.reason) for image in bad if image.sample < samples)


def run_jobs(
    run: ExtractionRun,
    cluster: Cluster,
    tally: Tally,
    messages: Messages,
    *,
    max_bad: float,
    config: Mapping[str, object],
) -> ExtractReport:
    """Run the plan's jobs. Whatever ends them, what was done is reported in the cache, with `config` beside it.

    ExtractionError where it cannot go on, or more than `max_bad` of the samples are unusable.
    """
    status = "stopped"
    try:
        with closing(outcomes(cluster, run, tally.plan.jobs, messages.say)) as results:
            for outcome in results:
                tally.add(outcome)
                messages.progress(tally.attempted, tally.plan.images, tally.stages.note())
                refuse_bad_data(tally, max_bad)
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
            config={name: str(value) for name, value in config.items()},
        )
        with suppress(StorageError):  # a full disk was reported already, or is what stops the run
            report = write_report(report, open_location(run.cache[0]), run.id)
    forget(cluster, run)
    return report


def refuse_bad_data(tally: Tally, max_bad: float) -> None:
    """ExtractionError, listing them, once more than `max_bad` of the samples are unusable."""
    if len(tally.bad) > max_bad * tally.plan.samples:
        listed = "; ".join(line.strip() for line in bad_lines(tally.bad))
        raise ExtractionError(
            f"{len(tally.bad)} of {tally.plan.samples} images cannot be used, more than --max-bad {max_bad:g} allows; "
            f"look at the data, or raise it: {listed}"
        )
