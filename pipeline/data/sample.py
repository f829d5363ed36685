"""One image with its labels, as every downstream data set hands it over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sak.errors import SakError
from sak.tasks import IGNORE

Labels = Mapping[str, NDArray[np.float32]]


class DataError(SakError):
    """A file of a data set is missing, damaged, or not what its place says."""


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


def select_tasks(wanted: Sequence[str] | None, known: tuple[str, ...], dataset: str) -> tuple[str, ...]:
    """The tasks asked for in the data set's own order; all where none are named."""
    unknown = set(wanted or ()) - set(known)
    if unknown:
        raise DataError(f"{dataset} has no task {sorted(unknown)[0]!r}; its tasks are {', '.join(known)}")
    return tuple(task for task in known if wanted is None or task in wanted)


def check_size(label: NDArray[np.float32], size: tuple[int, int], path: Path) -> NDArray[np.float32]:
    """The label (H, W, C) itself; DataError where it is not of its image's (H, W)."""
    if label.shape[:2] != size:
        raise DataError(f"{path} is {label.shape[:2]}, its image is {size}; one of the two belongs to another image")
    return label


def check_classes(stored: NDArray[np.uint8], allowed: int, path: Path) -> NDArray[np.uint8]:
    """The stored class numbers themselves; DataError where one is neither below `allowed` nor 255."""
    wrong = stored[(stored >= allowed) & (stored != IGNORE)]
    if wrong.size:
        raise DataError(
            f"{path} holds class {int(wrong[0])}; classes are 0 to {allowed - 1}, and 255 to ignore a pixel"
        )
    return stored
