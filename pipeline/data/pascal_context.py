"""PASCAL-Context with five tasks, in the on-disk layout of the multi-task releases."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import label_files as mat
from pipeline.data.label_files import read_lines, read_mask, read_png, read_rgb
from pipeline.data.sample import DataError, TaskSample, check_classes, check_size, select_tasks
from sak.metrics.boundary.score import from_label_map
from sak.tasks import VOC_CLASSES

TASKS = ("semseg", "human_parts", "sal", "normals", "edge")
# Surfaces that the normals were predicted for: NYU's classes, and the television under its PASCAL name.
EXTRA_NORMAL_CLASSES = ("tvmonitor",)
NOT_NORMAL_CLASSES = ("unknown",)


class PascalContext:
    """`PASCALContext/` below or at `root`; `split` is `train` or `val`."""

    dataset = "pascal-context"

    def __init__(self, root: Path, split: str, tasks: Sequence[str] | None = None) -> None:
        """`tasks` None takes all five."""
        self.root = dataset_folder(root, "PASCALContext")
        self.split = split
        self.tasks = select_tasks(tasks, TASKS, self.dataset)
        self.names = read_lines(self.root / "ImageSets" / "Context" / f"{split}.txt")

    def __len__(self) -> int:
        """How many images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Such as `2008_000002`."""
        return self.names[index]

    def __getitem__(self, index: int) -> TaskSample:
        """Image and labels; DataError names a file that is missing, damaged, or of another size than its image."""
        name = self.names[index]
        image = read_rgb(self.root / "JPEGImages" / f"{name}.jpg").astype(np.float32)
        size = (image.shape[0], image.shape[1])
        labels = {task: check_size(self._label(task, name), size, self._files(task, name)[0]) for task in self.tasks}
        return TaskSample(name, image, labels, size)

    def files(self, name: str) -> tuple[Path, ...]:
        """Every file that image `name` needs for the tasks of this split."""
        wanted = [self.root / "JPEGImages" / f"{name}.jpg"]
        for task in self.tasks:
            wanted += self._files(task, name)
        return tuple(dict.fromkeys(wanted))

    def boundary_files(self, name: str) -> tuple[Path, ...]:
        """What boundary evaluation reads of image `name`."""
        return (self._label_map(name),)

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """Boundaries between 4-connected components of the LabelMap, thinned."""
        return from_label_map(mat.label_map(self._label_map(self.names[index])))

    def has_person(self, index: int) -> bool:
        """Whether the image shows a person; the single-task parts baseline keeps these alone."""
        return mat.persons(self._parts(self.names[index])) > 0

    @cached_property
    def normal_classes(self) -> tuple[int, ...]:
        """LabelMap numbers whose pixels have valid normals."""
        folder = self.root / "json"
        nyu, context = (_read_classes(folder / f"{name}_classes.json") for name in ("nyu", "context"))
        shared = (set(nyu) & set(context)) - set(NOT_NORMAL_CLASSES)
        return tuple(sorted({context[name] for name in shared | (set(EXTRA_NORMAL_CLASSES) & set(context))}))

    def _label_map(self, name: str) -> Path:
        return self.root / "pascal-context" / "trainval" / f"{name}.mat"

    def _parts(self, name: str) -> Path:
        return self.root / "human_parts" / f"{name}.mat"

    def _semseg(self, name: str) -> Path:
        """The VOC annotation where there is one, else PASCAL-Context's own."""
        path = self.root / "semseg" / "VOC12" / f"{name}.png"
        return path if path.is_file() else self.root / "semseg" / "pascal-context" / f"{name}.png"

    def _files(self, task: str, name: str) -> list[Path]:
        places = {
            "semseg": [self._semseg(name)],
            "human_parts": [self._parts(name)],
            "sal": [self.root / "sal_distill" / f"{name}.png"],
            "normals": [self.root / "normals_distill" / f"{name}.png", self._label_map(name)],
            "edge": [self._label_map(name)],
        }
        return places[task]

    def _label(self, task: str, name: str) -> NDArray[np.float32]:
        first = self._files(task, name)[0]
        if task == "semseg":
            return plane(check_classes(read_png(first), len(VOC_CLASSES), first), first)
        if task == "human_parts":
            return plane(mat.human_parts(first), first)
        if task == "sal":
            return plane(read_mask(first).astype(np.float32) / np.float32(255) > 0.5, first)
        if task == "normals":
            return self._normals(name)
        return plane(mat.training_boundaries(first), first)

    def _normals(self, name: str) -> NDArray[np.float32]:
        label_file = self._label_map(name)
        normals = decode_normals(self.root / "normals_distill" / f"{name}.png")
        valid = np.isin(mat.label_map(label_file), self.normal_classes)
        if valid.shape != normals.shape[:2]:
            raise DataError(
                f"{label_file}: LabelMap is {valid.shape}, the normals of {name} are {normals.shape[:2]}; "
                "one of the two belongs to another image"
            )
        return normals * valid[:, :, None].astype(np.float32)


def dataset_folder(root: Path, name: str) -> Path:
    """`root` itself where it is called `name` or holds the set's files, else `root/name`."""
    inside = root / name
    if inside.is_dir():
        return inside
    if root.is_dir():
        return root
    raise DataError(f"{root} is not a folder; give the folder that holds {name}/")


def plane(values: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    """(H, W) values as a float32 label (H, W, 1)."""
    if values.ndim != 2:
        raise DataError(f"{path} is {values.shape}, a label is (H, W); it may have been saved as a colour picture")
    return values.astype(np.float32)[:, :, None]


def decode_normals(path: Path) -> NDArray[np.float32]:
    """2 * png / 255 - 1 in float32: (H, W, 3), not normalised."""
    values = read_png(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{path}: normals are an RGB PNG, this one is {values.shape}")
    return np.float32(2) * values.astype(np.float32) / np.float32(255) - np.float32(1)


def _read_classes(path: Path) -> dict[str, int]:
    try:
        classes = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); it maps class names to numbers") from error
    if not isinstance(classes, dict):
        raise DataError(f"{path}: expected class names mapped to numbers, got {type(classes).__name__}")
    wrong = [name for name, number in classes.items() if type(number) is not int]
    if wrong:
        raise DataError(f"{path}: the number of class {wrong[0]!r} is {classes[wrong[0]]!r}, not a whole number")
    return classes
