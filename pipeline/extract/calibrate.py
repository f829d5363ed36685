"""Before the blocks of a run: calibration of every teacher that has none yet, and a short measurement of its speed.

A calibration is the channel statistics that a column is encoded with. Both run in a worker, and are waited for.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pipeline.cache.calibration import Calibrator, calibration_samples
from pipeline.cache.column_codec import reduction_of
from pipeline.cache.level_codec import FeatureError
from pipeline.cache.manifest import Manifest
from pipeline.extract.columns import ExtractionTarget
from pipeline.extract.job import answered, forward_in_pieces, to_images
from pipeline.extract.plan import ExtractionPlan
from pipeline.extract.worker import ExtractionRun, LoadedTeacher, WorkerContext, worker_context
from pipeline.progress import duration
from sak.features import FeatureMaps
from sak.teachers import Teacher

_IMAGES = {"cuda": 64, "cpu": 4}  # a teacher's speed is measured with so many
_REPEATS = 2  # the faster counts


def uncalibrated(targets: Mapping[str, ExtractionTarget]) -> dict[str, int]:
    """Those of the teachers whose columns have no calibration yet, and the samples that theirs takes."""
    return {
        name: min(_settings(target.manifest)[0], target.manifest.layout.samples)
        for name, target in targets.items()
        if target.column is None or target.column.calibration() is None
    }


@answered
def calibrate(run: ExtractionRun, names: Sequence[str]) -> None:
    """Make and publish the calibrations of `names`, in a worker; teachers with the same settings share the decoding."""
    context = worker_context(run)
    settings = {name: _settings(run.manifests[name]) for name in names}
    with context.lane():
        for count, seed in sorted(set(settings.values())):
            _calibrate_group(context, count, seed, [name for name in names if settings[name] == (count, seed)])


def _settings(manifest: Manifest) -> tuple[int, int]:
    wanted = manifest.document["calibration"]
    return wanted["samples"], wanted["seed"]


def _calibrate_group(context: WorkerContext, count: int, seed: int, names: Sequence[str]) -> None:
    """Statistics of `count` samples of the whole index, view 0, whatever part of it the run extracts."""
    samples = calibration_samples(context.index.keys(), count, seed)
    teachers = [context.teacher(name) for name in names]
    calibrators = [
        Calibrator(loaded.teacher.levels, loaded.manifest.document["encoding"]["pca"]) for loaded in teachers
    ]
    for batch in context.source.batches(samples, 0, context.run.batch_size):
        context.check_stop()
        if len(batch):
            images = to_images(batch.pixels, context.device)
            for loaded, calibrator in zip(teachers, calibrators, strict=True):
                calibrator.update(_reduced_features(loaded, images, batch.keys))
    for loaded, calibrator in zip(teachers, calibrators, strict=True):
        loaded.column.publish_calibration(calibrator.finish())


def _reduced_features(loaded: LoadedTeacher, images: torch.Tensor, keys: Sequence[str]) -> FeatureMaps:
    """Features on the column's grid; FeatureError, which names the sample, where one is not finite."""
    features = forward_in_pieces(loaded.teacher, images)
    for level in features.levels:
        finite = features[level].flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            key = keys[int((~finite).nonzero()[0])]
            raise FeatureError(
                f"teacher {loaded.teacher.name}, level {level}, sample {key!r}: features are not finite; "
                "run this teacher in another precision, or leave the image out"
            )
    reduce = reduction_of(loaded.manifest.document, loaded.manifest.grid)
    return features.apply(lambda map_: reduce(map_).map)


@dataclass(frozen=True)
class Speed:
    """Images per second of one worker: decoding alone, and each teacher's forward alone (empty: no usable image)."""

    device: str = "cpu"
    decode: float = 0.0
    forward: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, plan: ExtractionPlan, workers: int) -> float:
        """How long the plan will take: forwards one after another, decoding beside them where a GPU does those."""
        decode = plan.images / self.decode if self.decode else 0.0
        forward = sum(plan.teachers[name].samples / rate for name, rate in self.forward.items())
        return (max(decode, forward) if self.device.startswith("cuda") else decode + forward) / workers

    def calibration_seconds(self, samples: Mapping[str, int]) -> float:
        """How long calibrations of so many samples take on one worker; teachers of one number share the decoding."""
        decode = sum(set(samples.values())) / self.decode if self.decode else 0.0
        return decode + sum(count / self.forward[name] for name, count in samples.items())

    def lines(self, plan: ExtractionPlan, workers: int, calibration: Mapping[str, int]) -> list[str]:
        """For the screen; none where no image could be measured. `calibration`: samples of each teacher without one."""
        if not self.forward:
            return []
        rates = ", ".join(f"{name} {rate:,.1f}" for name, rate in self.forward.items())
        together = 1 / sum(1 / rate for rate in self.forward.values())
        lines = [
            f"Images per second of one worker: decoding {self.decode:,.0f}; {rates}; all together {together:,.1f}",
            f"About {duration(self.seconds(plan, workers))} on {workers} worker{'s' * (workers > 1)}",
        ]
        if calibration:
            most, seconds = max(calibration.values()), self.calibration_seconds(calibration)
            lines.append(f"Before that, once: calibration on {most:,} images, about {duration(seconds)}")
        return lines


@answered
def measure_speed(run: ExtractionRun, names: tuple[str, ...], samples: tuple[int, ...], view: int) -> Speed:
    """Decode a batch of `samples` and run every teacher over it, in a worker; loads the teachers as it goes."""
    context = worker_context(run)
    count = min(_IMAGES[context.device.type], context.batch_size)
    start = time.perf_counter()
    batch = next(context.source.batches(samples[: 4 * count], view, 4 * count))
    decode = (len(batch) + len(batch.absent)) / (time.perf_counter() - start)
    images = to_images(batch.pixels[:count], context.device)
    rates = {name: _forward_rate(context, name, images) for name in names if len(images)}
    return Speed(str(context.device), decode, rates)


def _forward_rate(context: WorkerContext, name: str, images: torch.Tensor) -> float:
    teacher = context.teacher(name).teacher
    forward_in_pieces(teacher, images)  # the first one chooses kernels and takes memory
    return len(images) / min(_seconds(teacher, images) for _ in range(_REPEATS))


def _seconds(teacher: Teacher, images: torch.Tensor) -> float:
    start = time.perf_counter()
    forward_in_pieces(teacher, images)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
