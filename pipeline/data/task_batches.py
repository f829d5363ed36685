"""Batches of augmented images with their labels: a pure function of the seed and the step, on any number of ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import for_training, generator
from pipeline.data.distillation import take_rows
from pipeline.data.label_files import DataError
from pipeline.data.loading import BatchLoader, load_batches
from pipeline.data.sample import TaskDataset
from sak.errors import UsageError
from sak.losses.projection import Targets
from sak.student.router import noise_shape
from sak.student.student import Student
from sak.teachers.recipe import Size
from sak.variants.frozen import Amalgam

LiveTargets = Callable[[Tensor], Mapping[str, Targets]]
"""Normalised images (B, 3, H, W) to teacher -> targets: the teachers that run beside the training."""
Noise = Mapping[int, Mapping[str, Tensor]]
DrawNoise = Callable[[Sequence[str], int], Noise]
"""The images' names and the epoch to level -> task -> the routers' noise, on the CPU."""


@dataclass(frozen=True)
class WantedImages:
    """One rank's part of a batch: image numbers in the data set, and the epoch that augmentation is drawn for."""

    indices: Sequence[int]
    epoch: int


@dataclass(frozen=True)
class AugmentedImages:
    """(B, 3, H, W) normalised images and task -> labels (B, C, H, W), float32, in host memory."""

    epoch: int
    names: tuple[str, ...]
    images: Tensor
    labels: Mapping[str, Tensor]

    def pin_memory(self) -> "AugmentedImages":
        """Where the device can fetch them by itself; called by PyTorch's loader."""
        labels = {task: label.pin_memory() for task, label in self.labels.items()}
        return AugmentedImages(self.epoch, self.names, self.images.pin_memory(), labels)


@dataclass
class AugmentedDataset(BatchLoader[WantedImages, AugmentedImages]):
    """Reads and augments; what is drawn for an image follows from the seed, the epoch and its name."""

    dataset: TaskDataset
    size: Size
    seed: int

    def load(self, wanted: WantedImages) -> AugmentedImages:
        """One part of a batch; DataError where a file cannot be read or an image has no label of a task."""
        samples = [
            for_training(self.dataset[index], self.size, seed=self.seed, epoch=wanted.epoch) for index in wanted.indices
        ]
        for sample in samples:
            missing = [task for task in self.dataset.tasks if task not in sample.labels]
            if missing:
                raise DataError(f"image {sample.name} has no label of {', '.join(missing)}; leave it out with --tasks")
        labels = {task: torch.stack([sample.labels[task] for sample in samples]) for task in self.dataset.tasks}
        images = torch.stack([sample.image for sample in samples])
        return AugmentedImages(wanted.epoch, tuple(sample.name for sample in samples), images, labels)


class TaskBatch:
    """What a fine-tuning step takes, on the device; the teachers run when their targets are first asked for."""

    def __init__(
        self,
        loaded: AugmentedImages,
        device: torch.device,
        teachers: LiveTargets | None = None,
        draw: DrawNoise | None = None,
    ) -> None:
        self.keys: Sequence[str] = loaded.names
        self.images = loaded.images.to(device, non_blocking=True)
        self.labels = {task: label.to(device, non_blocking=True) for task, label in loaded.labels.items()}
        self._epoch, self._teachers, self._draw = loaded.epoch, teachers, draw

    @cached_property
    def targets(self) -> Mapping[str, Targets]:
        """Teacher -> what it makes of these very pixels; none without teachers."""
        return {} if self._teachers is None else self._teachers(self.images)

    @cached_property
    def noise(self) -> Noise | None:
        """The routers' noise of these images in this epoch; None where there are no routers."""
        if self._draw is None:
            return None
        drawn = self._draw(self.keys, self._epoch)
        device = self.images.device
        return {level: {task: noise.to(device) for task, noise in tasks.items()} for level, tasks in drawn.items()}

    def split(self, parts: int) -> "list[TaskBatch]":
        """Equal parts, for gradient accumulation; the teachers run once, on the whole."""
        size = len(self.keys) // parts
        return [self._rows(slice(part * size, (part + 1) * size)) for part in range(parts)]

    def _rows(self, rows: slice) -> "TaskBatch":
        labels = {task: label[rows] for task, label in self.labels.items()}
        images = AugmentedImages(self._epoch, tuple(self.keys[rows]), self.images[rows], labels)
        targets = {name: take_rows(maps, rows) for name, maps in self.targets.items()}
        if self.noise is None:
            return TaskBatch(images, self.images.device, lambda _: targets)
        noise = {level: {task: drawn[rows] for task, drawn in tasks.items()} for level, tasks in self.noise.items()}
        return TaskBatch(images, self.images.device, lambda _: targets, lambda *_: noise)

    def release(self) -> None:
        """Nothing was lent."""


@dataclass(frozen=True)
class TaskBatches:
    """Endless training batches of some images of a data set.

    Attributes:
        dataset: a training split.
        indices: the images of it that are trained on.
        size: (H, W) of the crops.
        batch_size: global; every rank takes an equal part of each batch.
        seed: of the order and the augmentation.
        device: where batches go.
        workers: processes that read and augment.
        rank: this one's number.
        ranks: how many share the batches.
        teachers: those that run beside the training.
        draw: the routers' noise.
    """

    dataset: TaskDataset
    indices: tuple[int, ...]
    size: Size
    batch_size: int
    seed: int
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    teachers: LiveTargets | None = None
    draw: DrawNoise | None = None

    def __post_init__(self) -> None:
        """UsageError where there is no whole batch, or it does not divide among the ranks."""
        if self.batch_size % self.ranks:
            raise UsageError(f"a batch of {self.batch_size} does not divide among {self.ranks} processes")
        if len(self.indices) < self.batch_size:
            raise UsageError(
                f"{len(self.indices)} training images make no batch of {self.batch_size}; take a smaller --batch-size, "
                "or more of the data (--fraction)"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over waits for another epoch's order."""
        return len(self.indices) // self.batch_size

    def start_at(self, step: int) -> Iterator[TaskBatch]:
        """Batches from global step `step` on; SakError where an image or a label cannot be read."""
        loader = AugmentedDataset(self.dataset, self.size, self.seed)
        pin = self.device.type == "cuda"
        for loaded in load_batches(loader, map(self.part, count(step)), workers=self.workers, pin=pin):
            yield TaskBatch(loaded, self.device, self.teachers, self.draw)

    def part(self, step: int) -> WantedImages:
        """This rank's images of a global step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.indices))
        share = self.batch_size // self.ranks
        first = number * self.batch_size + self.rank * share
        return WantedImages([self.indices[row] for row in order[first : first + share]], epoch)

    def remedy(self) -> str:
        """What to do where training waits for data."""
        return f"images are read and augmented too slowly; raise data.workers ({self.workers}), one a core at most"


@lru_cache(maxsize=2)  # a batch and its neighbour are of two epochs at most
def _epoch_order(seed: int, epoch: int, images: int) -> list[int]:
    order: list[int] = generator(seed, epoch, "order").permutation(images).tolist()
    return order


class ImageNoise:
    """Standard normal draws for every level and task of routers; `shapes` by level, (tasks, experts) and any grid.

    An image's noise follows from (seed, epoch, its name), so that any rank in any order draws the same.
    """

    def __init__(self, tasks: Sequence[str], shapes: Mapping[int, tuple[int, ...]], seed: int) -> None:
        self.tasks, self.shapes, self.seed = tuple(tasks), dict(shapes), seed

    def __call__(self, names: Sequence[str], epoch: int) -> dict[int, dict[str, Tensor]]:
        """Level -> task -> (B, E), or (B, E, H, W) with noise per pixel; float32 on the CPU."""
        sources = [generator(self.seed, epoch, f"gates\0{name}") for name in names]
        noise = {}
        for level, shape in self.shapes.items():
            drawn = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources], axis=1)
            noise[level] = dict(zip(self.tasks, torch.from_numpy(drawn), strict=True))
        return noise


def gate_noise(network: nn.Module, seed: int) -> ImageNoise | None:
    """Of a student's or an amalgamation's routers; None where the network has none."""
    if isinstance(network, Amalgam):
        tasks = tuple(network.config.tasks)
        return ImageNoise(tasks, dict.fromkeys(network.levels, (len(tasks), len(network.experts))), seed)
    if not isinstance(network, Student) or network.config.fusion != "mor" or not network.config.tasks:
        return None
    config = network.config
    experts, tasks = len(config.experts), tuple(config.tasks)
    shapes = {
        level: noise_shape(config.gate_noise, batch=len(tasks), experts=experts, grid=config.grid_at(level))
        for level in config.tapped
    }
    return ImageNoise(tasks, shapes, seed)
