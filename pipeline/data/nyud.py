"""NYUD-v2 with four tasks, in the on-disk layout of the multi-task releases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import label_files as mat
from pipeline.data.label_files import finite_depth, read_array, read_lines, read_mask, read_png, read_rgb
from pipeline.data.pascal_context import dataset_folder, decode_normals, plane
from pipeline.data.sample import DataError, TaskSample, check_classes, check_size, select_tasks
from sak.metrics.boundary.score import from_boundary_map
from sak.tasks import IGNORE, NYUD_CLASSES

TASKS = ("semseg", "normals", "edge", "depth")
FOLDERS = {"semseg": "segmentation", "normals": "normals", "edge": "edge", "depth": "depth"}


class Nyud:
    """`NYUDv2/` below or at `root`; `split` is `train` or `val`."""

    dataset = "nyud"

    def __init__(self, root: Path, split: str, tasks: Sequence[str] | None = None) -> None:
        """`tasks` None takes all four."""
        self.root = dataset_folder(root, "NYUDv2")
        self.split = split
        self.tasks = select_tasks(tasks, TASKS, self.dataset)
        self.names = read_lines(self.root / "gt_sets" / f"{split}.txt")

    def __len__(self) -> int:
        """How many images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Such as `0001`."""
        return self.names[index]

    def __getitem__(self, index: int) -> TaskSample:
        """Image and labels; DataError names a file that is missing, damaged, or of another size than its image."""
        name = self.names[index]
        image = read_rgb(self.root / "images" / f"{name}.png").astype(np.float32)
        size = (image.shape[0], image.shape[1])
        labels = {task: check_size(self._label(task, name), size, self._file(task, name)) for task in self.tasks}
        return TaskSample(name, image, labels, size)

    def files(self, name: str) -> tuple[Path, ...]:
        """Every file that image `name` needs for the tasks of this split."""
        return (self.root / "images" / f"{name}.png", *(self._file(task, name) for task in self.tasks))

    def boundary_files(self, name: str) -> tuple[Path, ...]:
        """What boundary evaluation reads of image `name`."""
        return (self.root / "edge_mat" / f"{name}.mat",)

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """The boundary map of `edge_mat/`, doubled and thinned as the protocol has it."""
        return from_boundary_map(mat.boundaries(self.root / "edge_mat" / f"{self.names[index]}.mat"))

    def _file(self, task: str, name: str) -> Path:
        return self.root / FOLDERS[task] / f"{name}.{'npy' if task == 'depth' else 'png'}"

    def _label(self, task: str, name: str) -> NDArray[np.float32]:
        path = self._file(task, name)
        if task == "semseg":
            return plane(shift_classes(check_classes(read_png(path), len(NYUD_CLASSES) + 1, path)), path)
        if task == "edge":
            return plane(read_mask(path).astype(np.float32) / np.float32(255), path)
        if task == "depth":
            return plane(_metres(path), path)
        return decode_normals(path)


def shift_classes(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class 0 of the files is "no label": stored - 1, with 0 (and 255) becoming 255, ignore."""
    return np.where((stored == 0) | (stored == IGNORE), IGNORE, stored - np.uint8(1)).astype(np.uint8)


def _metres(path: Path) -> NDArray[np.float32]:
    depth = read_array(path)
    if depth.dtype.kind != "f":
        raise DataError(f"{path} holds {depth.dtype}; depth is metres in floating point (millimetres over 1000)")
    return finite_depth(depth[:, :, 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth, path)
