"""The metrics of a data set from a predict function: every image once, at its own size, on any number of ranks.

Batches are the same however many ranks share them, and sums are exact in any order, so that several ranks give
the very numbers of one. Processes beside this one read images, match boundaries and write predictions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.data.fitted import Fitted, fit, own_labels, read_at_own_size, valid_pixels
from pipeline.data.label_files import DataError
from pipeline.data.sample import TaskDataset
from pipeline.dense.sums import BoundarySums, PixelSums, TaskEvaluation
from pipeline.pictures.colour import Stored, stored, write_prediction
from pipeline.processes import work_pool
from pipeline.progress import Update
from sak.errors import SakError, UsageError
from sak.metrics.boundary import BoundaryCounts, count
from sak.metrics.boundary_thinning import non_maximum_suppression
from sak.tasks import Dataset

Kind = TypeVar("Kind")
Predict = Callable[[Tensor], Mapping[str, Tensor]]
"""Normalised images (B, 3, H, W) of the size asked for -> task -> output (B, channels, H, W), before any activation."""


@dataclass(frozen=True)
class Evaluation:
    """All tasks of a data set: `images` in all, predicted at `size` (H, W)."""

    dataset: str
    images: int
    size: tuple[int, int]
    tasks: Mapping[str, TaskEvaluation]

    @property
    def metrics(self) -> dict[str, float]:
        """Task -> metric in the task's unit."""
        return {name: task.value for name, task in self.tasks.items()}


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings, lists and numbers as JSON has them; a number that does not exist (NaN) is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def from_plain(kind: type[Kind], value: Any) -> Kind:
    """The dataclass that `to_plain` was given; ValueError, one line, for anything else."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@torch.no_grad()
def evaluate_tasks(  # noqa: PLR0913 (what is evaluated, and where and how)
    predict: Predict,
    dataset: TaskDataset,
    table: Dataset,
    *,
    size: tuple[int, int],
    accelerator: Accelerator,
    batch_size: int = 8,
    workers: int = 0,
    boundary: bool = True,
    progress: Update | None = None,
    save: Path | None = None,
    limit: int | None = None,
    rescale_depth: bool = True,
) -> Evaluation:
    """Every metric of the table's tasks; every rank gets them all.

    Args:
        predict: the network, in evaluation mode already.
        dataset: read in `workers` processes (0: in this one), which also match boundaries and write predictions.
        table: the tasks; the data set needs the labels of all but edges, which have a ground truth of their own.
        size: (H, W) that `predict` takes; see `pipeline.data.fitted` for images of other sizes.
        accelerator: whose ranks share the batches, and on whose device they are.
        batch_size: images in a forward of one rank.
        workers: processes of each rank beside its own.
        boundary: False leaves edges out: matching them takes longer than all else.
        progress: how many images are done, reported by the main rank.
        save: a folder for the predictions; see `pipeline.pictures.colour`.
        limit: the first images alone.
        rescale_depth: multiply the depth of an image that was shrunk by its factor, as the training augmentation
            divides it: a shrunk scene looks as if it were farther away.

    Raises:
        SakError: an image, a label or a ground truth cannot be read, a prediction is not finite; on all ranks.
    """
    if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise UsageError(
            f"batch size and limit are at least 1, workers at least 0; got {batch_size}, {limit}, {workers}"
        )
    judged = table if boundary else table.select(task.name for task in table if task.metric != "odsF")
    _check(judged, dataset)
    images = len(dataset) if limit is None else min(limit, len(dataset))
    work = EvaluationWork(dataset, size, judged, save)
    evaluator = _Evaluator(predict, work, accelerator, rescale_depth)
    shown = progress if accelerator.is_main_process else None
    with _failing_together(accelerator):
        evaluator.run(_batches(images, batch_size, accelerator), workers, images, shown)
    return Evaluation(table.name, images, size, evaluator.reduced())


def _check(table: Dataset, dataset: TaskDataset) -> None:
    if not len(table):
        raise UsageError(f"{table.name}: no task is left to evaluate")
    missing = [task.name for task in table if task.metric != "odsF" and task.name not in dataset.tasks]
    if missing:
        raise UsageError(
            f"{table.name}: the data has no labels of {', '.join(missing)}, only of {', '.join(dataset.tasks)}; leave "
            "these tasks out with --tasks"
        )


def _batches(images: int, batch_size: int, accelerator: Accelerator) -> list[range]:
    """This rank's batches of image numbers: the k-th of all goes to rank k modulo their number."""
    starts = range(0, images, batch_size)[accelerator.process_index :: accelerator.num_processes]
    return [range(start, min(start + batch_size, images)) for start in starts]


@contextmanager
def _failing_together(accelerator: Accelerator) -> Iterator[None]:
    """An error of ours on one rank is one of all: the others would wait for this one's sums for ever."""
    failure: SakError | None = None
    try:
        yield
    except SakError as error:
        failure = error
    lines = [] if failure is None else [str(failure)]
    lines = gather_object(lines) if accelerator.num_processes > 1 else lines
    if lines:
        raise failure or SakError(lines[0])


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

    def finish(self, index: int, name: str, predictions: Mapping[str, Stored]) -> dict[str, tuple[int, BoundaryCounts]]:
        """Write the predictions, where they are kept; task -> the index and the counts of matched boundaries."""
        if self.save is not None:
            for task in self.table:
                write_prediction(self.save, task, name, predictions[task.name])
        return {
            task.name: (index, self._boundaries(index, predictions[task.name], task.boundary_tolerance or 0.0))
            for task in self.table
            if task.metric == "odsF"
        }

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


class _Evaluator:
    """One rank's part: predict the batches that others have read, add up, hand on what others finish."""

    def __init__(self, predict: Predict, work: EvaluationWork, accelerator: Accelerator, rescale_depth: bool) -> None:
        self.predict, self.work, self.accelerator, self.rescale_depth = predict, work, accelerator, rescale_depth
        edges = [task for task in work.table if task.metric == "odsF"]
        self.boundaries = {task.name: BoundarySums(task) for task in edges}
        self.pixels = {task.name: PixelSums(task, accelerator.device) for task in work.table if task not in edges}

    def run(self, batches: Sequence[range], workers: int, images: int, progress: Update | None) -> None:
        """Read, predict and measure these batches of `images` in all."""
        done = 0
        with work_pool(workers, "--workers", self.work) as pool:
            for batch in pool.map_batches(EvaluationWork.read, batches):
                for image, predictions in self._measure(batch):
                    pool.submit(EvaluationWork.finish, image.index, image.name, predictions)
                self._add_boundaries(pool.finished())
                done += len(batch)
                if progress is not None:
                    progress(min(done * self.accelerator.num_processes, images), images)
            self._add_boundaries(pool.finished(waiting=0))

    def reduced(self) -> dict[str, TaskEvaluation]:
        """Task -> numbers of all ranks' images, in the table's order."""
        sums: dict[str, PixelSums | BoundarySums] = {**self.pixels, **self.boundaries}
        return {name: sums[name].reduced(self.accelerator) for name in self.work.table.names}

    def _measure(self, images: Sequence[EvaluationImage]) -> Iterator[tuple[EvaluationImage, dict[str, Stored]]]:
        """Each image with its predictions as they are stored, where there is a use for them."""
        inputs = torch.from_numpy(np.stack([image.fitted.image for image in images]))
        outputs = self.predict(inputs.to(self.accelerator.device))
        for row, image in enumerate(images):
            predictions = {}
            for task in self.work.table:
                output = outputs[task.name][row : row + 1]
                if task.metric == "RMSE" and self.rescale_depth:
                    output = output * image.fitted.scale
                prediction = read_at_own_size(task, output, image.fitted)
                if task.name in self.pixels:
                    label = torch.from_numpy(image.labels[task.name])
                    label = label[None] if prediction.ndim == 4 else label
                    self.pixels[task.name].add(prediction, label, image.valid[task.name])
                if self.work.save is not None or task.metric == "odsF":
                    predictions[task.name] = stored(task, prediction)
            if predictions:
                yield image, predictions

    def _add_boundaries(self, finished: Iterable[Mapping[str, tuple[int, BoundaryCounts]]]) -> None:
        for counts_by_task in finished:
            for task, (index, counts) in counts_by_task.items():
                self.boundaries[task].add(index, counts)
