"""The metrics of a data set from a predict function: every image once, at its own size, whatever the processes.

Batches are the same however many processes share them, and sums are exact in any order, so that several processes give
the very numbers of one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.data.fitted import read_at_own_size
from pipeline.data.sample import TaskDataset
from pipeline.dense.sums import EvaluationImage, EvaluationSums, EvaluationWork, TaskEvaluation, finish, prepare, read
from pipeline.pictures.colour import Stored, stored
from pipeline.processes import WAITING, in_order, worker_pool
from pipeline.progress import Update
from sak.errors import SakError, UsageError
from sak.metrics.boundary.score import BoundaryCounts
from sak.tasks import Dataset

Predict = Callable[[Tensor], Mapping[str, Tensor]]
"""Normalised images (B, 3, H, W) of the size asked for -> task -> output (B, channels, H, W), before any activation."""

AHEAD = 2
"""Batches read ahead of the one that is predicted."""


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

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; a number that does not exist (NaN) is null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `as_dict`; KeyError or TypeError for anything else."""
        tasks = {
            name: TaskEvaluation(**{**task, "value": nan if task["value"] is None else task["value"]})
            for name, task in value["tasks"].items()
        }
        return cls(value["dataset"], value["images"], (value["size"][0], value["size"][1]), tasks)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


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
    """Every metric of the table's tasks; every process gets them all.

    Args:
        predict: the network, in evaluation mode already.
        dataset: read in `workers` processes (0: in this one), which also match boundaries and write predictions.
        table: the tasks; the data set needs the labels of all but edges, which have a ground truth of their own.
        size: (H, W) that `predict` takes; see `pipeline.data.fitted` for images of other sizes.
        accelerator: whose processes share the batches, and on whose device they are.
        batch_size: images in a forward of one process.
        workers: processes beside this one.
        boundary: False leaves edges out: matching them takes longer than all else.
        progress: how many images are done, told to the main process.
        save: a folder for the predictions; see `pipeline.pictures.colour`.
        limit: the first images alone.
        rescale_depth: multiply the depth of an image that was shrunk by its factor, as the training augmentation
            divides it: a shrunk scene looks as if it were farther away.

    Raises:
        SakError: an image, a label or a ground truth cannot be read, a prediction is not finite; on all processes.
    """
    if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise UsageError(
            f"batch size and limit are at least 1, workers at least 0; got {batch_size}, {limit}, {workers}"
        )
    judged = table if boundary else table.select(task.name for task in table if task.metric != "odsF")
    _check(judged, dataset)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    evaluator = _Evaluator(
        predict,
        EvaluationWork(dataset, size, judged, save),
        EvaluationSums(judged, accelerator.device),
        accelerator,
        rescale_depth,
    )
    shown = progress if accelerator.is_main_process else None
    with _failing_together(accelerator):
        evaluator.run(_batches(count, batch_size, accelerator), workers, count, shown)
    return Evaluation(table.name, count, size, evaluator.sums.reduced(accelerator))


def _check(table: Dataset, dataset: TaskDataset) -> None:
    if not len(table):
        raise UsageError(f"{table.name}: no task is left to evaluate")
    missing = [task.name for task in table if task.metric != "odsF" and task.name not in dataset.tasks]
    if missing:
        raise UsageError(
            f"{table.name}: the data has no labels of {', '.join(missing)}, only of {', '.join(dataset.tasks)}; leave "
            "these tasks out with --tasks"
        )


def _batches(count: int, batch_size: int, accelerator: Accelerator) -> list[range]:
    """This process's batches of image numbers: the k-th of all goes to process k modulo their number."""
    starts = range(0, count, batch_size)
    mine = starts[accelerator.process_index :: accelerator.num_processes]
    return [range(start, min(start + batch_size, count)) for start in mine]


@contextmanager
def _failing_together(accelerator: Accelerator) -> Iterator[None]:
    """An error of ours in one process is one of all: the others would wait for this one's sums for ever."""
    failure: SakError | None = None
    try:
        yield
    except SakError as error:
        failure = error
    told = [str(failure) if failure is not None else None]
    others = [line for line in gather_object(told) if line is not None] if accelerator.num_processes > 1 else []
    if failure is not None or others:
        raise failure or SakError(others[0])


@dataclass(frozen=True)
class _Evaluator:
    """One process's part: predict the batches that others have read, add up, hand on what others finish."""

    predict: Predict
    work: EvaluationWork
    sums: EvaluationSums
    accelerator: Accelerator
    rescale_depth: bool

    def run(self, batches: Sequence[range], workers: int, count: int, progress: Update | None) -> None:
        """Read, predict and measure these batches of `count` images in all."""
        unfinished: deque[tuple[int, Future[BoundaryCounts | None]]] = deque()
        done = 0
        with worker_pool(workers, "--workers", prepare=prepare, arguments=(self.work, workers > 0)) as pool:
            for images in _read_ahead(pool, batches, workers):
                for image, predictions in self._measure(images):
                    unfinished.append((image.index, pool.submit(finish, image.index, image.name, predictions)))
                while len(unfinished) > WAITING * workers:
                    self._take(*unfinished.popleft())
                done += len(images)
                if progress is not None:
                    progress(min(done * self.accelerator.num_processes, count), count)
            while unfinished:
                self._take(*unfinished.popleft())

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
                if task.name in self.sums.pixels:
                    label = torch.from_numpy(image.labels[task.name])
                    label = label[None] if prediction.ndim == 4 else label
                    self.sums.pixels[task.name].add(prediction, label, image.valid[task.name])
                if self.work.save is not None or task.metric == "odsF":
                    predictions[task.name] = stored(task, prediction)
            if predictions:
                yield image, predictions

    def _take(self, index: int, finished: Future[BoundaryCounts | None]) -> None:
        counts = finished.result()
        if counts is not None and self.sums.boundaries is not None:
            self.sums.boundaries.add(index, counts)


def _read_ahead(pool: Executor, batches: Sequence[range], workers: int) -> Iterator[list[EvaluationImage]]:
    """The batches, read by the pool."""
    largest = max(map(len, batches), default=0)
    read_images = in_order(pool, read, chain.from_iterable(batches), max(AHEAD * largest, workers) if workers else 1)
    for batch in batches:
        yield [next(read_images) for _ in batch]
