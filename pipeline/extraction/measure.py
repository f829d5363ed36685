"""A short measurement on a worker before a long run: how fast images decode here, and how fast each teacher is."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pipeline.extraction.forward import forward_in_pieces, to_images
from pipeline.extraction.job import Failure
from pipeline.extraction.plan import Plan
from pipeline.extraction.worker import Run, WorkerContext, worker_context
from pipeline.progress import duration
from sak.errors import SakError
from sak.teachers import Teacher

_IMAGES = {"cuda": 64, "cpu": 4}
_REPEATS = 2  # the faster counts


@dataclass(frozen=True)
class Speed:
    """Images per second of one worker: decoding alone, and every teacher's forward alone; or why there is none."""

    device: str = "cpu"
    decode: float = 0.0
    forward: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None

    def seconds(self, plan: Plan, workers: int) -> float:
        """How long the plan will take: forwards one after another, decoding beside them where a GPU does those."""
        decode = plan.images / self.decode if self.decode else 0.0
        forward = sum(plan.teachers[name].samples / rate for name, rate in self.forward.items())
        return (max(decode, forward) if self.device.startswith("cuda") else decode + forward) / workers

    def calibration_seconds(self, samples: Mapping[str, int]) -> float:
        """How long calibrations of so many samples take on one worker; teachers of one number share the decoding."""
        decode = sum(set(samples.values())) / self.decode if self.decode else 0.0
        return decode + sum(count / self.forward[name] for name, count in samples.items())

    def lines(self, plan: Plan, workers: int, calibration: Mapping[str, int]) -> list[str]:
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


def measure_speed(run: Run, names: tuple[str, ...], samples: tuple[int, ...], view: int) -> Speed:
    """Decode a batch of `samples` and run every teacher over it, in a worker; loads the teachers as it goes."""
    try:
        return _measure(worker_context(run), names, samples, view)
    except SakError as error:
        return Speed(failure=Failure(str(error), error.exit_code))


def _measure(context: WorkerContext, names: tuple[str, ...], samples: tuple[int, ...], view: int) -> Speed:
    count = min(_IMAGES[context.device.type], context.batch_size)
    start = time.perf_counter()
    batch = next(context.source.batches(samples[: 4 * count], view, 4 * count))
    decode = (len(batch) + len(batch.absent)) / (time.perf_counter() - start)
    if not len(batch):
        return Speed(str(context.device), decode)
    images = to_images(batch.pixels[:count], context.device)
    return Speed(str(context.device), decode, {name: _forward_rate(context, name, images) for name in names})


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
