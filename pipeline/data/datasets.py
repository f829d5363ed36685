"""The downstream data sets by name, and the check of a tree before anything long starts on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.augment import generator
from pipeline.data.folder import FolderDataset, FolderSpec
from pipeline.data.nyud import Nyud
from pipeline.data.pascal_context import PascalContext
from pipeline.data.sample import DataError, TaskDataset
from sak import tasks as table
from sak.errors import UsageError


class ListedDataset(TaskDataset, Protocol):
    """A split that knows its files, so that a missing one is told before anything long starts."""

    names: tuple[str, ...]

    def files(self, name: str) -> tuple[Path, ...]:
        """Every file that image `name` needs for the tasks of this split."""

    def boundary_files(self, name: str) -> tuple[Path, ...]:
        """What boundary evaluation reads of image `name`."""


READERS: dict[str, Callable[[Path, str, Sequence[str] | None], ListedDataset]] = {
    "pascal-context": PascalContext,
    "nyud": Nyud,
    "demo-pascal": PascalContext,
    "demo-nyud": Nyud,
}
LISTED_MISSING = 20


@dataclass(frozen=True)
class TreeCheck:
    """What a split needs and what of it is not there."""

    dataset: str
    split: str
    images: int
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
    return TreeCheck(name, split, len(dataset), len(wanted), tuple(path for path in wanted if not path.is_file()))


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


def describe(check: TreeCheck) -> Iterator[str]:
    """A check as lines for a person."""
    yield f"{check.dataset} {check.split}: {check.images} images, {check.files} files, {len(check.missing)} missing"
    for path in check.missing[:LISTED_MISSING]:
        yield f"  missing {path}"
    if len(check.missing) > LISTED_MISSING:
        yield f"  and {len(check.missing) - LISTED_MISSING} more"
