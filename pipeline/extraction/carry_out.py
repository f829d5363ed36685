"""From a plan to its end: jobs run, outcomes are counted, what happened is reported in the cache."""

from collections.abc import Mapping
from contextlib import closing, suppress

from pipeline.cluster import Cluster
from pipeline.extraction.config import Voice
from pipeline.extraction.drive import ExtractionError, forget, outcomes
from pipeline.extraction.report import ExtractReport, Tally, bad_lines, write_report
from pipeline.extraction.worker import Run, surroundings
from pipeline.storage import Location, StorageError
from sak.errors import SakError


def carry_out(
    run: Run, cluster: Cluster, tally: Tally, voice: Voice, *, max_bad: float, config: Mapping[str, object]
) -> ExtractReport:
    """Run the plan's jobs. Whatever ends them, what was done is reported in the cache, with `config` beside it.

    ExtractionError where it cannot go on, or more than `max_bad` of the samples are unusable.
    """
    status = "stopped"
    try:
        with closing(outcomes(cluster, run, tally.plan.jobs, voice.say)) as results:
            for outcome in results:
                tally.add(outcome)
                voice.progress(tally.attempted, tally.plan.images, tally.stages.note())
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
        with suppress(StorageError):  # a full disk has been told already, or is what we are being stopped by
            report = write_report(report, Location.parse(run.cache[0]), run.id)
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
