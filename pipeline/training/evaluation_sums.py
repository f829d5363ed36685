"""Sums of an evaluation over images and processes, exact whatever the order: integers, and floats added by `fsum`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from sak.metrics.boundary.score import BoundaryCounts, curve, score
from sak.metrics.outputs import PixelMetric, pixel_metric
from sak.tasks import Dataset, Task


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
    value: float
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
        """The numbers of all processes' images."""
        rows = torch.stack(self.rows).tolist() if self.rows else []
        counts = self.counts.to(self.metric.device)
        if accelerator.num_processes > 1:
            rows = gather_object(rows)
            counts = accelerator.reduce(counts, "sum")
            for name, value in self.metric.state.items():
                if name not in self.floats:
                    value.copy_(accelerator.reduce(value, "sum"))
        self._put_back([fsum(column) for column in zip(*rows, strict=True)])
        result = asdict(self.metric.result())
        images, unlabelled, pixels = counts.tolist()
        return _told(self.task, result.pop("value"), images, unlabelled, pixels, result)

    def _put_back(self, sums: list[float]) -> None:
        start = 0
        for name in self.floats if sums else ():
            state = self.metric.state[name]
            state.copy_(torch.tensor(sums[start : start + state.numel()], dtype=state.dtype).reshape(state.shape))
            start += state.numel()


class BoundarySums:
    """Boundary counts by image; those of one image are 3 kB."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.images: list[tuple[int, BoundaryCounts]] = []

    def add(self, index: int, counts: BoundaryCounts) -> None:
        """Image number `index`."""
        self.images.append((index, counts))

    def reduced(self, accelerator: Accelerator) -> TaskEvaluation:
        """ODS, and OIS, AP and the curve beside it, of all processes' images; all in percent but thresholds."""
        images = gather_object(self.images) if accelerator.num_processes > 1 else self.images
        counts = [count for _, count in sorted(images, key=lambda pair: pair[0])]
        best, total = score(counts), sum(counts[1:], start=counts[0])
        whole = curve(total)
        empty = sum(not count.truth[0] for count in counts)
        numbers = {
            "ois": 100 * best.ois,
            "ap": 100 * best.ap,
            "precision": 100 * best.ods_precision,
            "recall": 100 * best.ods_recall,
            "threshold": best.ods_threshold,
            "precision_by_threshold": (100 * whole.precision).tolist(),
            "recall_by_threshold": (100 * whole.recall).tolist(),
        }
        return _told(self.task, 100 * best.ods, len(counts) - empty, empty, int(total.truth[0]), numbers)


def _told(
    task: Task, value: float, images: int, unlabelled: int, pixels: int, numbers: Mapping[str, Any]
) -> TaskEvaluation:
    return TaskEvaluation(
        task.metric, task.unit, task.lower_is_better, value, images, unlabelled, pixels, dict(numbers)
    )


class EvaluationSums:
    """The sums of every task that is judged."""

    def __init__(self, table: Dataset, device: torch.device) -> None:
        self.pixels = {task.name: PixelSums(task, device) for task in table if task.metric != "odsF"}
        self.boundaries = next((BoundarySums(task) for task in table if task.metric == "odsF"), None)
        self.names = table.names

    def reduced(self, accelerator: Accelerator) -> dict[str, TaskEvaluation]:
        """Task -> numbers of all processes' images, in the table's order."""
        found = {name: sums.reduced(accelerator) for name, sums in self.pixels.items()}
        if self.boundaries is not None:
            found[self.boundaries.task.name] = self.boundaries.reduced(accelerator)
        return {name: found[name] for name in self.names}
