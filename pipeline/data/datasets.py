"""The downstream data sets by name, folders described by a YAML file among them, and the check of a tree's files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.augment import generator
from pipeline.data.label_files import (
    DataError,
    check_classes,
    decode_normals,
    finite_depth,
    plane,
    read_array,
    read_mask,
    read_png,
    read_values,
)
from pipeline.data.pascal_nyud import Nyud, PascalContext
from pipeline.data.sample import ListedDataset, TaskDataset
from pipeline.settings import Frozen, parse_settings, read_yaml
from sak import tasks as table
from sak.errors import UsageError, nearest
from sak.metrics.boundary import from_boundary_map

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FEWEST_CLASSES = 2
ROWS = {task.name: task for dataset in (table.PASCAL_CONTEXT, table.NYUD) for task in dataset}


class FolderTask(Frozen):
    """Labels of one task: `<folder>/<id><suffix>`.

    PNG values are class numbers (255 ignored), 0/255 masks (sal, edge), or 2 * png / 255 - 1 (normals); depth is .npy
    metres, or a 16-bit PNG times `scale`. `classes` names the classes of semseg, and makes a task of any new name;
    `weight` replaces the table's.
    """

    folder: str
    suffix: str = ".png"
    classes: tuple[str, ...] = ()
    scale: float = Field(default=1.0, gt=0)
    weight: float | None = Field(default=None, gt=0)


class FolderSpec(Frozen):
    """What the YAML file says; paths are relative to the data folder."""

    images: str
    splits: dict[str, str] = Field(min_length=1)
    tasks: dict[str, FolderTask] = Field(min_length=1)
    input_size: tuple[int, int] = (512, 512)
    name: str = "folder"

    @classmethod
    def load(cls, path: Path) -> "FolderSpec":
        """Read and check a file; UsageError names the key that is wrong."""
        spec = parse_settings(cls, read_yaml(path, "a folder's description"), str(path))
        for name, task in spec.tasks.items():
            _check_classes_of(name, task.classes, path)
        return spec.model_copy(update={"name": path.stem} if spec.name == "folder" else {})

    def table(self) -> table.Dataset:
        """The task rows of this folder: the paper's and those of new names, with these classes and weights."""
        rows = []
        for name, task in self.tasks.items():
            row = ROWS.get(name, replace(ROWS["semseg"], name=name))
            if task.weight is not None:
                row = replace(row, weight=task.weight)
            if task.classes:
                colours = table.voc_palette(len(task.classes))
                row = replace(row, channels=len(task.classes), classes=task.classes, palette=colours)
            rows.append(row)
        return table.Dataset(self.name, self.input_size, tuple(rows))


def _check_classes_of(name: str, classes: Sequence[str], path: Path) -> None:
    """UsageError where a task needs classes and has none, or has some that are not its to choose.

    A new name that is most likely a misspelt one is refused too.
    """
    if name not in ROWS:
        misspelt = get_close_matches(name, ROWS, n=1, cutoff=0.8)
        if misspelt:
            raise UsageError(f"{path}: tasks: unknown task {name!r}; did you mean {misspelt[0]!r}?")
        if not classes:
            raise UsageError(
                f"{path}: tasks: unknown task {name!r}{nearest(name, ROWS)}; a task of your own needs the names of its "
                f"classes: {name}: {{folder: ..., classes: [first, second]}}"
            )
        if not name.isidentifier():
            raise UsageError(f"{path}: tasks: a task's name is letters, digits and _, got {name!r}")
    if (classes or name == "semseg") and len(classes) < FEWEST_CLASSES:
        raise UsageError(f"{path}: tasks.{name}.classes must name at least two classes, in the order of their numbers")
    if classes and name in ROWS and ROWS[name].metric != ROWS["semseg"].metric:
        raise UsageError(f"{path}: tasks.{name} has classes or channels of its own: leave classes out")


class FolderDataset(ListedDataset):
    """A split of a described folder; image names are file names without their suffix."""

    def __init__(self, spec: FolderSpec, root: Path, split: str, tasks: Sequence[str] | None = None) -> None:
        """`tasks` None takes all that the file describes."""
        if split not in spec.splits:
            raise UsageError(f"{spec.name} has no split {split!r}; its splits are {', '.join(spec.splits)}")
        super().__init__(spec.name, root, path_within(root, spec.splits[split]), tuple(spec.tasks), tasks)
        self.spec = spec
        self.channels = spec.table().channels

    def image_file(self, name: str) -> Path:
        """With the first suffix that is there."""
        paths = [path_within(self.root, self.spec.images, f"{name}{suffix}") for suffix in IMAGE_SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0])

    def label_files(self, task: str, name: str) -> tuple[Path, ...]:
        """One a task."""
        described = self.spec.tasks[task]
        return (path_within(self.root, described.folder, f"{name}{described.suffix}"),)

    def label(self, task: str, name: str) -> NDArray[np.float32]:
        """Decoded by task."""
        (path,) = self.label_files(task, name)
        if task == "normals":
            return decode_normals(path)
        if task == "depth":
            stored = read_array(path) if path.suffix == ".npy" else read_values(path)
            return plane(finite_depth(stored, path) * np.float32(self.spec.tasks[task].scale), path)
        if task in ("sal", "edge"):
            return plane(_mask(path), path)
        return plane(check_classes(read_png(path), self.channels[task], path), path)

    def boundary_truth(self, index: int) -> NDArray[np.bool_]:
        """The edge labels, doubled and thinned as NYUD-v2's protocol has it."""
        if "edge" not in self.spec.tasks:
            return super().boundary_truth(index)
        return from_boundary_map(_mask(*self.boundary_files(self.names[index])))


def _mask(path: Path) -> NDArray[np.bool_]:
    values = read_mask(path)
    if values.max() == 1:
        raise DataError(f"{path} holds 0 and 1; a mask holds 0 and 255")
    return values > 127


def path_within(root: Path, *parts: str) -> Path:
    """`root/parts...`; DataError where the parts would leave `root`."""
    path = root.joinpath(*parts)
    if any(Path(part).is_absolute() or ".." in Path(part).parts for part in parts):
        raise DataError(
            f"{path} is outside {root}; names in the list and the YAML file are relative to the data folder"
        )
    return path


READERS: dict[str, Callable[[Path, str, Sequence[str] | None], ListedDataset]] = {
    "pascal-context": PascalContext,
    "nyud": Nyud,
    "demo-pascal": PascalContext,
    "demo-nyud": Nyud,
}


@dataclass(frozen=True)
class TreeCheck:
    """What a split needs and what of it is not there."""

    dataset: str
    split: str
    files: int
    missing: tuple[Path, ...]

    def raise_if_incomplete(self) -> None:
        """DataError naming the first missing files."""
        if self.missing:
            first = ", ".join(str(path) for path in self.missing[:3])
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            raise DataError(
                f"{self.dataset} {self.split}: {len(self.missing)} of {self.files} files are missing: {first}{more}; "
                "complete the tree, or leave tasks out with --tasks"
            )


def open_dataset(name: str, data: str | Path, split: str, tasks: Sequence[str] | None = None) -> ListedDataset:
    """A split of a data set.

    `name` is one of the known sets, or the path of a YAML file that describes a folder (then `data` is where its
    folders lie). Raises UsageError for an unknown name or split, DataError for a tree that is not what it says.
    """
    if name.endswith((".yaml", ".yml")):
        return FolderDataset(FolderSpec.load(Path(name)), Path(data), split, tasks)
    if name not in READERS:
        raise UsageError(f"no data set {name!r}; known: {', '.join(READERS)}, or the .yaml file of your own folder")
    if split not in ("train", "val"):
        raise UsageError(f"{name} has no split {split!r}; its splits are train, val")
    return READERS[name](Path(data), split, tasks)


def task_table(name: str) -> table.Dataset:
    """The rows of a data set's tasks, also of a folder described by a YAML file."""
    if name.endswith((".yaml", ".yml")):
        return FolderSpec.load(Path(name)).table()
    return table.dataset(name)


def check_tree(
    name: str, data: str | Path, split: str, tasks: Sequence[str] | None = None, *, boundaries: bool = False
) -> TreeCheck:
    """Look for every file that a split needs; takes under a second for ten thousand images on a local disk.

    `boundaries` looks for the ground truth of boundary evaluation too, which training does not read.
    """
    dataset = open_dataset(name, data, split, tasks)
    wanted = [path for image in dataset.names for path in dataset.files(image)]
    if boundaries and "edge" in dataset.tasks:
        wanted += [path for image in dataset.names for path in dataset.boundary_files(image)]
    return TreeCheck(name, split, len(wanted), tuple(path for path in wanted if not path.is_file()))


def files_read(dataset: ListedDataset, count: int, *, boundaries: bool) -> Iterator[Path]:
    """The files of the first `count` images, with the ground truth of boundary evaluation where it is asked for."""
    for image in dataset.names[:count]:
        yield from dataset.files(image)
        yield from dataset.boundary_files(image) if boundaries else ()


def fraction_of(dataset: TaskDataset, fraction: float, seed: int) -> tuple[int, ...]:
    """Indices of a fixed share of a data set: the images whose id hashes lowest under `seed`, in the set's order."""
    if not 0 < fraction <= 1:
        raise UsageError(f"the fraction of the data must be in (0, 1], got {fraction}")
    draws = [generator(seed, 0, f"fraction\0{dataset.name(index)}").random() for index in range(len(dataset))]
    ranked = sorted(range(len(dataset)), key=draws.__getitem__)
    return tuple(sorted(ranked[: max(1, round(fraction * len(dataset)))]))
