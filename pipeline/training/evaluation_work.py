"""What the processes beside an evaluation do: read images, match boundaries, write predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from numpy.typing import NDArray

from pipeline.data.fitted import Fitted, fit, own_labels, valid_pixels
from pipeline.data.sample import DataError, TaskDataset
from pipeline.pictures.files import Stored, write_prediction
from sak.metrics.boundary.score import BoundaryCounts, count
from sak.metrics.boundary.thin import non_maximum_suppression
from sak.tasks import Dataset


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
