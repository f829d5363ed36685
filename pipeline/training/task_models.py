"""The networks of a run as one: a single-task baseline has one a task, any other run a single one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from pipeline.data.datasets import task_table
from pipeline.training.task_model import Checkpoint, TaskModel, load_task_model
from sak.errors import UsageError, nearest
from sak.tasks import Dataset


@dataclass(frozen=True)
class TaskModels:
    """Networks that take images of one size and have different tasks of one data set."""

    directory: Path
    models: tuple[TaskModel, ...]

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        checkpoint: Checkpoint = "best",
        dataset: str | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> "TaskModels":
        """Of a run or a checkpoint's folder, see `load_task_model`; UsageError where their sizes differ."""
        models = load_task_model(directory, checkpoint=checkpoint, dataset=dataset, image_size=image_size)
        sizes = sorted({model.image_size for model in models})
        if len(sizes) > 1:
            raise UsageError(f"{directory}: its networks take images of {sizes}; train them at one size")
        return cls(directory, tuple(models))

    @property
    def dataset(self) -> str:
        """The data set's name, or the YAML file that describes it."""
        return self.models[0].dataset or ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that the networks take."""
        return self.models[0].image_size

    @property
    def single(self) -> nn.Module | None:
        """The network, where it is one alone."""
        return self.models[0].model if len(self.models) == 1 else None

    def table(self, wanted: Sequence[str] | None = None) -> Dataset:
        """The rows of all tasks, or of those wanted; UsageError for one that is not predicted."""
        predicted = [task for model in self.models for task in model.tasks]
        for task in wanted or ():
            if task not in predicted:
                raise UsageError(f"--tasks: {self.directory} does not predict {task!r}{nearest(task, predicted)}")
        return task_table(self.dataset).select(predicted if wanted is None else wanted)

    def to(self, device: torch.device | str) -> None:
        """Move them, in eval mode."""
        for model in self.models:
            model.model.to(device).eval()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Every task's output; see `pipeline.training.evaluation.Predict`."""
        return {task: output for model in self.models for task, output in model.predict(images).items()}


def check_checkpoint(name: str) -> None:
    """UsageError for anything but `best` and `last`."""
    if name not in get_args(Checkpoint):
        raise UsageError(f"no checkpoint {name!r}{nearest(name, get_args(Checkpoint))}")
