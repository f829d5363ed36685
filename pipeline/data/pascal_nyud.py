"""PASCAL-Context with five tasks and NYUD-v2 with four, in the on-disk layouts of the multi-task releases."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.label_files import (
    DataError,
    boundaries,
    check_classes,
    decode_normals,
    finite_depth,
    human_parts,
    label_map,
    persons,
    plane,
    read_array,
    read_mask,
    read_png,
    training_boundaries,
)
from pipeline.data.sample import ListedDataset
from sak.metrics.boundary import from_boundary_map, from_label_map
from sak.tasks import IGNORE, NYUD_CLASSES, VOC_CLASSES

PASCAL_TASKS = ("semseg", "human_parts", "sal", "normals", "edge")
LABEL_MAP = "pascal-context/trainval/{}.mat"
PASCAL_LABELS = {
    "human_parts": ("human_parts/{}.mat",),
    "sal": ("sal_distill/{}.png",),
    "normals": ("normals_distill/{}.png", LABEL_MAP),
    "edge": (LABEL_MAP,),
}
# Surfaces that the normals were predicted for: NYU's classes, and the television under its PASCAL name.
EXTRA_NORMAL_CLASSES = ("tvmonitor",)
NOT_NORMAL_CLASSES = ("unknown",)

NYUD_LABELS = {
    "semseg": "segmentation/{}.png",
    "normals": "normals/{}.png",
    "edge": "edge/{}.png",
    "depth": "depth/{}.npy",
}


class PascalContext(ListedDataset):
    """`PASCALContext/` below or at `root`; `split` is `train` or `val`; image names such as `2008_000002`."""

    def __init__(self, root: Path, split: str, tasks: Sequence[str] | None = None) -> None:
        """`tasks` None takes all five."""
        folder = dataset_folder(root, "PASCALContext")
        list_file = folder / "ImageSets" / "Context" / f"{split}.txt"
        super().__init__("pascal-context", folder, list_file, PASCAL_TASKS, tasks)

    def image_file(self, name: str) -> Path:
        """The picture."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def label_files(self, task: str, name: str) -> tuple[Path, ...]:
        """Of semseg the VOC annotation where there is one, else PASCAL-Context's own."""
        if task == "semseg":
            voc = self.root / "semseg" / "VOC12" / f"{name}.png"
            return (voc if voc.is_file() else self.root / "semseg" / "pascal-context" / f"{name}.png",)
        return tuple(self.root / pattern.format(name) for pattern in PASCAL_LABELS[task])

    def label(self, task: str, name: str) -> NDArray[np.float32]:
        """Decoded by task."""
        path, *more = self.label_files(task, name)
        if task == "semseg":
            return plane(check_classes(read_png(path), len(VOC_CLASSES), path), path)
        if task == "human_parts":
            return plane(human_parts(path), path)
        if task == "sal":
            return plane(read_mask(path) > 127, path)
        if task == "edge":
            return plane(training_boundaries(path), path)
        return self._valid_normals(name, path, more[0])

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """Boundaries between 4-connected components of the LabelMap, thinned."""
        return from_label_map(label_map(*self.boundary_files(self.names[index])))

    def has_person(self, index: int) -> bool:
        """Whether the image shows a person; the single-task parts baseline keeps these alone."""
        return persons(*self.label_files("human_parts", self.names[index])) > 0

    @cached_property
    def normal_classes(self) -> tuple[int, ...]:
        """LabelMap numbers whose pixels have valid normals."""
        nyu, context = (_read_classes(self.root / "json" / f"{name}_classes.json") for name in ("nyu", "context"))
        shared = (set(nyu) & set(context)) - set(NOT_NORMAL_CLASSES)
        return tuple(sorted({context[name] for name in shared | (set(EXTRA_NORMAL_CLASSES) & set(context))}))

    def _valid_normals(self, name: str, path: Path, label_map_file: Path) -> NDArray[np.float32]:
        """Zero vectors on surfaces that the normals were not predicted for."""
        normals = decode_normals(path)
        valid = np.isin(label_map(label_map_file), self.normal_classes)
        if valid.shape != normals.shape[:2]:
            raise DataError(
                f"{label_map_file}: LabelMap is {valid.shape}, the normals of {name} are {normals.shape[:2]}; "
                "one of the two belongs to another image"
            )
        return normals * valid[:, :, None].astype(np.float32)


class Nyud(ListedDataset):
    """`NYUDv2/` below or at `root`; `split` is `train` or `val`; image names such as `0001`."""

    def __init__(self, root: Path, split: str, tasks: Sequence[str] | None = None) -> None:
        """`tasks` None takes all four."""
        folder = dataset_folder(root, "NYUDv2")
        super().__init__("nyud", folder, folder / "gt_sets" / f"{split}.txt", tuple(NYUD_LABELS), tasks)

    def image_file(self, name: str) -> Path:
        """The picture."""
        return self.root / "images" / f"{name}.png"

    def label_files(self, task: str, name: str) -> tuple[Path, ...]:
        """One a task."""
        return (self.root / NYUD_LABELS[task].format(name),)

    def label(self, task: str, name: str) -> NDArray[np.float32]:
        """Decoded by task."""
        (path,) = self.label_files(task, name)
        if task == "semseg":
            return plane(_shift_classes(check_classes(read_png(path), len(NYUD_CLASSES) + 1, path)), path)
        if task == "edge":
            return plane(read_mask(path).astype(np.float32) / np.float32(255), path)
        return plane(_metres(path), path) if task == "depth" else decode_normals(path)

    def boundary_files(self, name: str) -> tuple[Path, ...]:
        """The annotators' boundary map, which the edge labels were made from."""
        return (self.root / "edge_mat" / f"{name}.mat",)

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """The boundary map of `edge_mat/`, doubled and thinned as the protocol has it."""
        return from_boundary_map(boundaries(*self.boundary_files(self.names[index])))


def dataset_folder(root: Path, name: str) -> Path:
    """`root` itself where it is called `name` or holds the set's files, else `root/name`."""
    if (root / name).is_dir():
        return root / name
    if root.is_dir():
        return root
    raise DataError(f"{root} is not a folder; give the folder that holds {name}/")


def _shift_classes(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class 0 of the files is "no label": stored - 1, with 0 (and 255) becoming 255, ignore."""
    return np.where((stored == 0) | (stored == IGNORE), IGNORE, stored - np.uint8(1)).astype(np.uint8)


def _metres(path: Path) -> NDArray[np.float32]:
    depth = read_array(path)
    if depth.dtype.kind != "f":
        raise DataError(f"{path} holds {depth.dtype}; depth is metres in floating point (millimetres over 1000)")
    return finite_depth(depth[:, :, 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth, path)


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
