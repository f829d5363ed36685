"""The images that a fine-tuning trains on and is measured on, and predictors that know their statistics alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.datasets import FolderDataset, check_tree, fraction_of, open_dataset
from pipeline.data.fitted import own_labels
from pipeline.data.pascal_nyud import PascalContext
from pipeline.data.sample import TaskDataset
from pipeline.dense.evaluation import Predict
from pipeline.processes import WAITING, work_pool
from pipeline.progress import Update
from sak.errors import SakError, UsageError
from sak.metrics.depth import FARTHEST
from sak.tasks import IGNORE, Dataset, Task

TRAINING, VALIDATION = "train", "val"
PARTS = "human_parts"


@dataclass(frozen=True)
class TaskData:
    """The training split and the indices of the images taken from it; the validation split, where there is one."""

    training: TaskDataset
    indices: tuple[int, ...]
    validation: TaskDataset | None


def open_task_data(
    name: str, data: str, rows: Dataset, *, fraction: float, seed: int, persons_only: bool, boundaries: bool
) -> TaskData:
    """Both splits with the labels of these tasks; DataError where a file is missing.

    `fraction` keeps a share of the training images, fixed by the seed. `persons_only` keeps, of a training on human
    parts alone, the images with a person (the paper's single-task baseline).
    """
    tasks = rows.names
    training = open_dataset(name, data, TRAINING, tasks)
    check_tree(name, data, TRAINING, tasks).raise_if_incomplete()
    indices = fraction_of(training, fraction, seed)
    if persons_only and tuple(tasks) == (PARTS,):
        indices = with_persons(training, indices)
    return TaskData(training, indices, _validation(name, data, tasks, training, boundaries))


def _validation(
    name: str, data: str, tasks: Sequence[str], training: TaskDataset, boundaries: bool
) -> TaskDataset | None:
    if isinstance(training, FolderDataset) and VALIDATION not in training.spec.splits:
        return None
    check_tree(name, data, VALIDATION, tasks, boundaries=boundaries).raise_if_incomplete()
    return open_dataset(name, data, VALIDATION, tasks)


def with_persons(dataset: TaskDataset, indices: Sequence[int]) -> tuple[int, ...]:
    """Those of the images that show a person; UsageError where none does."""
    shown = tuple(index for index in indices if _has_person(dataset, index))
    if not shown:
        raise UsageError(f"none of the {len(indices)} training images shows a person; leave {PARTS} out with --tasks")
    return shown


def _has_person(dataset: TaskDataset, index: int) -> bool:
    if isinstance(dataset, PascalContext):
        return dataset.has_person(index)
    labels = dataset[index].labels[PARTS]
    return bool(((labels != 0) & (labels != IGNORE)).any())


CERTAIN = 20.0
"""The logit of what is predicted everywhere."""

HOW = {
    "mIoU": "the commonest class everywhere",
    "parts mIoU": "the commonest class everywhere",
    "maxF": "salient everywhere",
    "mErr": "the mean normal everywhere",
    "odsF": "a boundary everywhere",
    "RMSE": "the mean depth everywhere",
}


@dataclass(frozen=True)
class LabelStatistics:
    """Task -> float64 sums over the pixels of all labels: of classes (255,), or of components and pixels (C + 1,)."""

    sums: Mapping[str, NDArray[np.float64]]

    def __add__(self, other: "LabelStatistics") -> "LabelStatistics":
        """Of both."""
        return LabelStatistics({task: self.sums[task] + other.sums[task] for task in self.sums})


def label_statistics(
    dataset: TaskDataset, table: Dataset, *, workers: int = 0, limit: int | None = None, progress: Update | None = None
) -> LabelStatistics:
    """Of the split's images (the first `limit`); labels of boundaries and saliency are not needed."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    learnt = [task for task in table if _is_learnt(task)]
    total: LabelStatistics | None = None
    with work_pool(workers, "--workers", (dataset, learnt)) as pool:
        for done, image in enumerate(pool.map(_of_image, range(count), WAITING * max(workers, 1)), start=1):
            total = image if total is None else total + image
            if progress is not None:
                progress(done, count)
    return total or LabelStatistics({})


def needs_labels(table: Dataset) -> list[str]:
    """The tasks whose training labels `label_statistics` reads."""
    return [task.name for task in table if _is_learnt(task)]


def _is_learnt(task: Task) -> bool:
    return task.metric in ("mIoU", "parts mIoU", "mErr", "RMSE")


def _of_image(work: tuple[TaskDataset, list[Task]], index: int) -> LabelStatistics:
    dataset, tasks = work
    labels = own_labels(dataset[index])
    return LabelStatistics({task.name: _sums(task, labels[task.name]) for task in tasks})


def _sums(task: Task, label: NDArray[Any]) -> NDArray[np.float64]:
    if task.classes:
        return np.bincount(label.ravel(), minlength=256)[:IGNORE].astype(np.float64)
    valid = (label != IGNORE).all(0)
    if task.metric == "RMSE":
        valid &= (label[0] > 0) & (label[0] < FARTHEST)
    return np.append(label[:, valid].sum(1, dtype=np.float64), valid.sum())


def trivial_predict(statistics: LabelStatistics, table: Dataset) -> Predict:
    """The same for every image, which every metric must beat; SakError where no training label has a valid pixel."""
    constants = {task.name: torch.tensor(_constant(task, statistics), dtype=torch.float32) for task in table}

    def predict(images: Tensor) -> dict[str, Tensor]:
        shape = (len(images), -1, *images.shape[-2:])
        return {
            task: values.to(images.device)[None, :, None, None].expand(*shape) for task, values in constants.items()
        }

    return predict


def _constant(task: Task, statistics: LabelStatistics) -> list[float]:
    """One value a channel."""
    if not _is_learnt(task):
        return [CERTAIN] if task.channels == 1 else [0.0, CERTAIN]
    sums = statistics.sums[task.name]
    if not sums[-1 if not task.classes else slice(None)].any():
        raise SakError(f"{task.name}: no training label has a valid pixel, so there is no trivial predictor")
    if task.classes:
        chosen = int(sums[: task.channels].argmax())
        return [CERTAIN * (number == chosen) for number in range(task.channels)]
    means: list[float] = (sums[:-1] / sums[-1]).tolist()
    return means
