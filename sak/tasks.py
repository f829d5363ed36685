"""The task table: what each task of each data set is, as rows; no code elsewhere asks for a task by name.

Channels, losses, weights, metrics and directions are the paper's; names and colours those of PASCAL VOC and of
NYUD-v2's forty classes. Imports no torch, so that the command line may list it at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sak.errors import UsageError, nearest

Colour = tuple[int, int, int]

IGNORE = 255
"""The label of a pixel that counts in no loss and no metric."""


def voc_palette(count: int) -> tuple[Colour, ...]:
    """The first `count` of PASCAL VOC's 256 colours (red, green, blue), from 0.

    Bits 0, 1, 2 of the class number are the highest bits of red, green, blue; bits 3, 4, 5 the next ones; and so on.
    """
    if not 0 <= count <= 256:
        raise ValueError(f"PASCAL VOC has 256 colours, got {count}")

    def component(number: int, first: int) -> int:
        return sum((number >> (3 * bit + first) & 1) << (7 - bit) for bit in range(3))

    return tuple((component(number, 0), component(number, 1), component(number, 2)) for number in range(count))


@dataclass(frozen=True)
class Task:
    """One task of one data set.

    Attributes:
        name: the identifier: semseg, human_parts, sal, normals, edge, depth.
        channels: of the head's output.
        loss: a key of `sak.losses.tasks.LOSSES`.
        weight: of the loss in the sum over tasks.
        metric: what the task is judged by: mIoU, parts mIoU, maxF, mErr, odsF, RMSE.
        unit: of the metric as reported.
        lower_is_better: the metric's direction, and the sign in delta_m.
        colouring: how a prediction becomes a picture: palette, grey, normals or colormap.
        classes: names by label value, where labels are classes.
        palette: colours by label value, where labels are classes.
        boundary_tolerance: matching distance of odsF as a share of the image diagonal; edge alone.
    """

    name: str
    channels: int
    loss: str
    weight: float
    metric: str
    unit: str
    lower_is_better: bool
    colouring: str
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    boundary_tolerance: float | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set's name, the (height, width) that networks see, and its tasks in the paper's order."""

    name: str
    input_size: tuple[int, int]
    tasks: tuple[Task, ...]

    def __iter__(self) -> Iterator[Task]:
        """The tasks."""
        return iter(self.tasks)

    def __len__(self) -> int:
        """How many tasks."""
        return len(self.tasks)

    def __getitem__(self, name: str) -> Task:
        """The task called `name`; UsageError names the nearest one."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UsageError(f"{self.name} has no task {name!r}{nearest(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' identifiers."""
        return tuple(task.name for task in self.tasks)

    @property
    def channels(self) -> dict[str, int]:
        """Task -> channels of its head."""
        return {task.name: task.channels for task in self.tasks}

    @property
    def weights(self) -> dict[str, float]:
        """Task -> weight of its loss."""
        return {task.name: task.weight for task in self.tasks}

    def reweighted(self, weights: Mapping[str, float]) -> "Dataset":
        """The same tasks with some of their losses' weights replaced; UsageError for an unknown task."""
        chosen = {self[name].name: weight for name, weight in weights.items()}
        return replace(self, tasks=tuple(replace(row, weight=chosen.get(row.name, row.weight)) for row in self.tasks))

    def select(self, names: Iterable[str]) -> "Dataset":
        """The same data set with these tasks alone, in the table's order; UsageError for an unknown one."""
        wanted = {self[name].name for name in names}
        return replace(self, tasks=tuple(task for task in self.tasks if task.name in wanted))


VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

NYUD_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture", "otherprop"),
)

PART_CLASSES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_VOC, _PARTS = voc_palette(len(VOC_CLASSES)), voc_palette(len(PART_CLASSES))
_SALIENT, _BLACK_AND_WHITE = ("background", "salient"), ((0, 0, 0), (255, 255, 255))

# name, channels, loss, weight, metric, unit, lower is better, colouring, classes, palette
_SEMSEG = Task("semseg", 21, "cross_entropy", 1.0, "mIoU", "%", False, "palette", VOC_CLASSES, _VOC)
_HUMAN_PARTS = Task("human_parts", 7, "cross_entropy", 2.0, "parts mIoU", "%", False, "palette", PART_CLASSES, _PARTS)
_SALIENCY = Task("sal", 2, "balanced_cross_entropy", 5.0, "maxF", "%", False, "grey", _SALIENT, _BLACK_AND_WHITE)
_NORMALS = Task("normals", 3, "normals_l1", 10.0, "mErr", "degrees", True, "normals")
_EDGE = Task("edge", 1, "balanced_bce", 50.0, "odsF", "%", False, "grey", boundary_tolerance=0.0075)
_DEPTH = Task("depth", 1, "l1", 1.0, "RMSE", "metres", True, "colormap")
_SEMSEG_40 = replace(
    _SEMSEG, channels=len(NYUD_CLASSES), classes=NYUD_CLASSES, palette=voc_palette(len(NYUD_CLASSES) + 1)[1:]
)

PASCAL_CONTEXT = Dataset("pascal-context", (512, 512), (_SEMSEG, _HUMAN_PARTS, _SALIENCY, _NORMALS, _EDGE))

NYUD = Dataset("nyud", (448, 576), (_SEMSEG_40, _DEPTH, _NORMALS, replace(_EDGE, boundary_tolerance=0.011)))

_DEMO = (replace(PASCAL_CONTEXT, name="demo-pascal"), replace(NYUD, name="demo-nyud"))

DATASETS: dict[str, Dataset] = {table.name: table for table in (PASCAL_CONTEXT, NYUD, *_DEMO)}


def dataset(name: str) -> Dataset:
    """The rows of the data set called `name`; UsageError names the nearest one."""
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}{nearest(name, DATASETS)}")
    return DATASETS[name]
