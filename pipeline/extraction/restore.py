"""What `cache repair` makes again before any block: manifests, from the spec, and calibrations, from the images."""

from collections.abc import Iterable

from pipeline.cache.column import CALIBRATION
from pipeline.cache.column_check import Problem
from pipeline.cache.column_writer import WritableColumn
from pipeline.cache.folder import Cache, ColumnPlace
from pipeline.cache.manifest import MANIFEST
from pipeline.cache.spec import load_spec
from pipeline.cache.store import DamageError
from pipeline.cluster import Cluster
from pipeline.extraction.calibrate import calibrate
from pipeline.extraction.columns import make_manifest
from pipeline.extraction.config import Voice
from pipeline.extraction.drive import ask
from pipeline.extraction.teachers import identify
from pipeline.extraction.worker import Run


def columns_struck(problems: Iterable[Problem], file: str) -> set[ColumnPlace]:
    """The columns whose `file` has a problem."""
    return {
        ColumnPlace(each.column, each.data)
        for each in problems
        if each.column and each.data and each.file.endswith(f"/{file}")
    }


def restore_manifests(cache: Cache, problems: Iterable[Problem], spec: str, voice: Voice) -> int:
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
        if ColumnPlace.of(manifest) != place:
            voice.say(f"{place.path}: {spec} describes {manifest.name}, another column; its manifest stays damaged")
            continue
        cache.top.at(place).write_bytes(MANIFEST, manifest.to_bytes())
        voice.say(f"{place.path}: manifest written again, from {spec}")
        restored += 1
    return restored


def restore_calibration(column: WritableColumn, run: Run, cluster: Cluster, voice: Voice) -> bool:
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
