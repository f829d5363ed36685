"""A task's numbers, summed over images and ranks, exact in any order: integers, and floats added by `fsum`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum, nan
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import BeforeValidator
from torch import Tensor

from sak.metrics.boundary import BoundaryCounts, curve, score
from sak.metrics.outputs import PixelMetric, pixel_metric
from sak.tasks import Task


@dataclass(frozen=True)
class TaskEvaluation:
    """One task's numbers over a data set.

    Attributes:
        metric: its name; `unit` and `lower_is_better` as in the task table.
        value: the metric; NaN where nothing counted.
        images: that had a valid label, and `unlabelled`: those without a single valid pixel.
        pixels: valid ones of all labels; of boundaries those of the thin ground truth.
        numbers: what else the metric says, by the names of its result in `sak.metrics`, in percent or as named there.
    """

    metric: str
    unit: str
    lower_is_better: bool
    value: Annotated[float, BeforeValidator(lambda stored: nan if stored is None else stored)]  # JSON has no NaN
    images: int
    unlabelled: int
    pixels: int
    numbers: Mapping[str, Any]


class PixelSums:
    """A streaming metric whose floating-point sums are kept by image, and added exactly at the end."""

    def __init__(self, task: Task, device: torch.device) -> None:
        metric = pixel_metric(task, device)
        if metric is None:
            raise TypeError(f"{task.name} is not judged by pixels")
        self.task = task
        self.metric: PixelMetric = metric
        self.floats = [name for name, value in metric.state.items() if value.is_floating_point()]
        self.rows: list[Tensor] = []
        self.counts = torch.zeros(3, dtype=torch.int64)  # labelled images, unlabelled ones, valid pixels

    def add(self, prediction: Tensor, label: Tensor, valid: int) -> None:
        """One image; both as the task's metric takes them."""
        self.metric.update(prediction, label)
        self.counts += torch.tensor([valid > 0, valid == 0, valid])
        if self.floats:
            self.rows.append(torch.cat([self.metric.state[name].reshape(-1) for name in self.floats]))
            for name in self.floats:
                self.metric.state[name].zero_()

    def reduced(self, accelerator: Accelerator) -> TaskEvaluation:
        """The numbers of all ranks' images."""
        rows = torch.stack(self.rows).tolist() if self.rows else []
        counts = self.counts.to(self.metric.device)
        if accelerator.num_processes > 1:
            rows = gather_object(rows)
            counts = accelerator.reduce(counts, "sum")
            for name, value in self.metric.state.items():
                if name not in self.floats:
                    value.copy_(accelerator.reduce(value, "sum"))
        if rows:
            sums = torch.tensor([fsum(column) for column in zip(*rows, strict=True)], dtype=torch.float64)
            states = [self.metric.state[name] for name in self.floats]
            for state, part in zip(states, sums.split([state.numel() for state in states]), strict=True):
                state.copy_(part.reshape(state.shape))
        result, task = asdict(self.metric.result()), self.task
        value, (images, unlabelled, pixels) = result.pop("value"), counts.tolist()
        return TaskEvaluation(task.metric, task.unit, task.lower_is_better, value, images, unlabelled, pixels, result)


class BoundarySums:
    """Boundary counts by image; those of one image are 3 kB."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.images: list[tuple[int, BoundaryCounts]] = []

    def add(self, index: int, counts: BoundaryCounts) -> None:
        """Image number `index`."""
        self.images.append((index, counts))

    def reduced(self, accelerator: Accelerator) -> TaskEvaluation:
        """ODS, and OIS, AP and the curve beside it, of all ranks' images; all in percent but thresholds."""
        images = gather_object(self.images) if accelerator.num_processes > 1 else self.images
        counts = [count for _, count in sorted(images, key=lambda pair: pair[0])]
        best, total, task = score(counts), sum(counts[1:], start=counts[0]), self.task
        by_threshold = curve(total)
        empty = sum(not count.truth[0] for count in counts)
        numbers = {
            "ois": 100 * best.ois,
            "ap": 100 * best.ap,
            "precision": 100 * best.ods_precision,
            "recall": 100 * best.ods_recall,
            "threshold": best.ods_threshold,
            "precision_by_threshold": (100 * by_threshold.precision).tolist(),
            "recall_by_threshold": (100 * by_threshold.recall).tolist(),
        }
        sizes = (len(counts) - empty, empty, int(total.truth[0]))
        return TaskEvaluation(task.metric, task.unit, task.lower_is_better, 100 * best.ods, *sizes, numbers)
