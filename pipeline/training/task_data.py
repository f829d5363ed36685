"""The images that a fine-tuning trains on and is measured on, checked before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.datasets import check_tree, fraction_of, open_dataset
from pipeline.data.folder import FolderDataset
from pipeline.data.pascal_context import PascalContext
from pipeline.data.sample import TaskDataset
from sak.errors import UsageError
from sak.tasks import IGNORE, Dataset

TRAINING, VALIDATION = "train", "val"
PARTS = "human_parts"


@dataclass(frozen=True)
class TaskData:
    """The training split and the places of the images taken from it; the validation split, where there is one."""

    training: TaskDataset
    places: tuple[int, ...]
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
    places = fraction_of(training, fraction, seed)
    if persons_only and tuple(tasks) == (PARTS,):
        places = with_persons(training, places)
    return TaskData(training, places, _validation(name, data, tasks, training, boundaries))


def _validation(
    name: str, data: str, tasks: Sequence[str], training: TaskDataset, boundaries: bool
) -> TaskDataset | None:
    if isinstance(training, FolderDataset) and VALIDATION not in training.spec.splits:
        return None
    check_tree(name, data, VALIDATION, tasks, boundaries=boundaries).raise_if_incomplete()
    return open_dataset(name, data, VALIDATION, tasks)


def with_persons(dataset: TaskDataset, places: Sequence[int]) -> tuple[int, ...]:
    """Those of the images that show a person; UsageError where none does."""
    found = tuple(place for place in places if _has_person(dataset, place))
    if not found:
        raise UsageError(f"none of the {len(places)} training images shows a person; leave {PARTS} out with --tasks")
    return found


def _has_person(dataset: TaskDataset, place: int) -> bool:
    if isinstance(dataset, PascalContext):
        return dataset.has_person(place)
    labels = dataset[place].labels[PARTS]
    return bool(((labels != 0) & (labels != IGNORE)).any())
