"""Sums of an evaluation over images and processes, exact whatever the order: integers, and floats added by `fsum`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import Any

import cv2
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.fitted import Fitted, fit, own_labels, valid_pixels
from pipeline.data.label_files import DataError
from pipeline.data.sample import TaskDataset
from pipeline.pictures.colour import Stored, write_prediction
from sak.metrics.boundary.score import BoundaryCounts, count, curve, score
from sak.metrics.boundary.thin import non_maximum_suppression
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


# What the processes beside an evaluation do: read images, match boundaries, write predictions.


@dataclass(frozen=True)
class EvaluationImage:
    """An image as the network takes it, its labels (C, h, w) at its own size, and their valid pixels, by task."""

    index: int
    name: str
    fitted: Fitted
    labels: Mapping[str, NDArray[Any]]
    valid: Mapping[str, int]


@dataclass(frozen=True)
class EvaluationWork:
    """The data set, the network's (H, W), the tasks that are judged, and where predictions go, if they are kept."""

    dataset: TaskDataset
    size: tuple[int, int]
    table: Dataset
    save: Path | None

    def read(self, index: int) -> EvaluationImage:
        """Image and labels number `index`."""
        sample = self.dataset[index]
        labels = {task: label for task, label in own_labels(sample).items() if task in self.table.names}
        valid = {task: valid_pixels(label) for task, label in labels.items()}
        return EvaluationImage(index, sample.name, fit(sample.image, self.size), labels, valid)

    def finish(self, index: int, name: str, predictions: Mapping[str, Stored]) -> BoundaryCounts | None:
        """Match the boundaries, where they are judged, and write the predictions, where they are kept."""
        counts = None
        for task in self.table:
            if task.metric == "odsF":
                counts = self._boundaries(index, predictions[task.name], task.boundary_tolerance or 0.0)
            if self.save is not None:
                write_prediction(self.save, task, name, predictions[task.name])
        return counts

    def _boundaries(self, index: int, grey: Stored, tolerance: float) -> BoundaryCounts:
        truth = self.dataset.boundary_truth(index)
        if truth.shape != grey.shape:
            raise DataError(
                f"{self.dataset.name(index)}: the boundary ground truth is {truth.shape}, the image {grey.shape}; one "
                "of the two belongs to another image"
            )
        if min(grey.shape) < 2:
            raise DataError(f"{self.dataset.name(index)} is {grey.shape}; boundaries need two pixels a side")
        return count(non_maximum_suppression(grey), [truth], max_distance=tolerance)


_here: list[EvaluationWork] = []


def prepare(work: EvaluationWork, alone: bool) -> None:
    """Take the work over; a process of its own (`alone`) computes with one thread."""
    _here[:] = [work]
    if alone:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)


def read(index: int) -> EvaluationImage:
    """`EvaluationWork.read` of the work that this process has."""
    return _here[0].read(index)


def finish(index: int, name: str, predictions: Mapping[str, Stored]) -> BoundaryCounts | None:
    """`EvaluationWork.finish` of the work that this process has."""
    return _here[0].finish(index, name, predictions)
