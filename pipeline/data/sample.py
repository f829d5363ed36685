"""One image with its labels, and a split of a downstream data set that hands such images over."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.label_files import DataError, read_lines, read_rgb

Labels = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TaskSample:
    """An RGB image (H, W, 3) float32 in 0..255 and its labels float32, (H, W, 1) or normals (H, W, 3).

    255 is "ignore" in semseg, human_parts, sal and edge. Depth is in metres, 0 where unknown. Normals are
    2 * png / 255 - 1 as stored, zero vectors where invalid. `size` is the image's own (H, W), before any transform.
    """

    name: str
    image: NDArray[np.float32]
    labels: Labels
    size: tuple[int, int]


class TaskDataset(Protocol):
    """A split of a downstream data set."""

    tasks: tuple[str, ...]

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int) -> TaskSample:
        """Read one image and its labels from disk."""

    def name(self, index: int) -> str:
        """The image's id, as the split's list has it."""

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """The thin ground truth (H, W) of boundary evaluation; DataError where the set has none."""


class ListedDataset(ABC):
    """A `TaskDataset` on disk: each line of a list names an image, which has a label a task.

    It knows its files, so that a missing one is reported before anything long starts; none is ever skipped. A reader
    of a layout says where the files are and what a label holds.
    """

    def __init__(
        self, dataset: str, root: Path, list_file: Path, available: Sequence[str], tasks: Sequence[str] | None
    ) -> None:
        """`tasks`, of those `available` in the layout; None takes them all."""
        self.dataset, self.root = dataset, root
        self.tasks = select_tasks(tasks, available, dataset)
        self.names = read_lines(list_file)

    @abstractmethod
    def image_file(self, name: str) -> Path:
        """Where image `name` lies."""

    @abstractmethod
    def label_files(self, task: str, name: str) -> tuple[Path, ...]:
        """What the task's label is read from; the first is the one that errors name."""

    @abstractmethod
    def label(self, task: str, name: str) -> NDArray[np.float32]:
        """The label (H, W, 1), or normals (H, W, 3)."""

    def boundary_files(self, name: str) -> tuple[Path, ...]:
        """What boundary evaluation reads of image `name`."""
        return self.label_files("edge", name)

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """The thin ground truth (H, W) of boundary evaluation; DataError where the set has none."""
        del index
        raise DataError(f"{self.dataset} has no edge labels, so no boundary ground truth")

    def files(self, name: str) -> tuple[Path, ...]:
        """Every file that image `name` needs for the tasks of this split, each once."""
        labels = [path for task in self.tasks for path in self.label_files(task, name)]
        return tuple(dict.fromkeys([self.image_file(name), *labels]))

    def __len__(self) -> int:
        """How many images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """The line of the split's list."""
        return self.names[index]

    def __getitem__(self, index: int) -> TaskSample:
        """Image and labels; DataError names a file that is missing, damaged, or of another size than its image."""
        name = self.names[index]
        image = read_rgb(self.image_file(name)).astype(np.float32)
        size = (image.shape[0], image.shape[1])
        labels = {task: self.label(task, name) for task in self.tasks}
        for task, label in labels.items():
            if label.shape[:2] != size:
                path = self.label_files(task, name)[0]
                raise DataError(
                    f"{path} is {label.shape[:2]}, its image is {size}; one of the two belongs to another image"
                )
        return TaskSample(name, image, labels, size)


def select_tasks(wanted: Sequence[str] | None, available: Sequence[str], dataset: str) -> tuple[str, ...]:
    """The tasks asked for in the data set's own order; all where none are named."""
    unknown = set(wanted or ()) - set(available)
    if unknown:
        raise DataError(f"{dataset} has no task {sorted(unknown)[0]!r}; its tasks are {', '.join(available)}")
    return tuple(task for task in available if wanted is None or task in wanted)
