"""The calibration job: channel statistics of every teacher that has none yet, before any of its blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.cache.calibration import Calibrator, calibration_samples
from pipeline.cache.column_codec import reduction_of
from pipeline.cache.encoding import FeatureError
from pipeline.cache.manifest import Manifest
from pipeline.extraction.columns import Target
from pipeline.extraction.forward import forward_in_pieces, to_images
from pipeline.extraction.job import Failure
from pipeline.extraction.worker import LoadedTeacher, Run, StoppedError, WorkerContext, worker_context
from sak.errors import SakError


@dataclass(frozen=True)
class Calibrated:
    """What the job did: samples used by teacher, or why it failed."""

    samples: Mapping[str, int]
    failure: Failure | None = None
    stopped: bool = False


def uncalibrated(targets: Mapping[str, Target]) -> dict[str, int]:
    """Those of the teachers whose columns have no calibration yet, and the samples that theirs takes."""
    return {
        name: min(_settings(target.manifest)[0], target.manifest.layout.samples)
        for name, target in targets.items()
        if target.column is None or target.column.calibration() is None
    }


def calibrate(run: Run, names: Sequence[str]) -> Calibrated:
    """Make and publish the calibrations of `names`, in a worker; teachers with the same settings share the decoding."""
    try:
        context = worker_context(run)
        with context.lane():
            groups: dict[tuple[int, int], list[str]] = {}
            for name in names:
                groups.setdefault(_settings(run.manifests[name]), []).append(name)
            counts = [_calibrate_group(context, count, seed, each) for (count, seed), each in groups.items()]
            return Calibrated({name: count for group in counts for name, count in group.items()})
    except StoppedError:
        return Calibrated({}, stopped=True)
    except SakError as error:
        return Calibrated({}, Failure(str(error), error.exit_code))


def _settings(manifest: Manifest) -> tuple[int, int]:
    wanted = manifest.document["calibration"]
    return wanted["samples"], wanted["seed"]


def _calibrate_group(context: WorkerContext, count: int, seed: int, names: Sequence[str]) -> dict[str, int]:
    """Statistics of `count` samples of the whole index, view 0, whatever part of it the run extracts."""
    samples = calibration_samples(context.index.keys(), count, seed)
    works = [_TeacherWork(context.teacher(name)) for name in names]
    for batch in context.source.batches(samples, 0, context.run.batch_size):
        context.check_stop()
        if len(batch):
            images = to_images(batch.pixels, context.device)
            for work in works:
                work.update(images, batch.keys)
    return {name: work.publish() for name, work in zip(names, works, strict=True)}


class _TeacherWork:
    def __init__(self, loaded: LoadedTeacher) -> None:
        manifest = loaded.manifest
        self._loaded = loaded
        self._reduce = reduction_of(manifest.document, manifest.grid)
        self._calibrator = Calibrator(loaded.teacher.levels, manifest.document["encoding"]["pca"])

    def update(self, images: torch.Tensor, keys: Sequence[str]) -> None:
        features = forward_in_pieces(self._loaded.teacher, images)
        for level in features.levels:
            finite = features[level].flatten(1).isfinite().all(1)
            if not bool(finite.all()):
                key = keys[int((~finite).nonzero()[0])]
                raise FeatureError(
                    f"teacher {self._loaded.teacher.name}, level {level}, sample {key!r}: features are not finite; "
                    "run this teacher in another precision, or leave the image out"
                )
        self._calibrator.update(features.apply(lambda map_: self._reduce(map_).map))

    def publish(self) -> int:
        return self._loaded.column.publish_calibration(self._calibrator.finish()).samples
