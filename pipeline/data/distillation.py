"""Batches for distillation: the views' images joined with the cached features of the same pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.batches import FeatureBatches
from pipeline.cache.cache import FeatureCache
from pipeline.cache.order import BatchState, ReadingOrder
from pipeline.data.view_images import PhotometricJitter, ViewDataset, ViewImages, Wanted, load_images
from pipeline.images.errors import ReplayError
from sak.features import FeatureMaps
from sak.losses.projection import ProjectedTarget
from sak.losses.targets import Target, TargetMaps, Targets

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class DistillBatch:
    """Images and targets of one process's part of a batch.

    `images` (B, 3, H, W) uint8 on the device. Targets are decoded when first asked for, so that decoding counts as
    computing, not as waiting for data.
    """

    def __init__(self, images: Tensor, encoded: EncodedBatch) -> None:
        self.images, self.encoded = images, encoded
        self.keys: Sequence[str] = encoded.keys

    @cached_property
    def targets(self) -> Mapping[str, Targets]:
        """Teacher -> targets on the images' device."""
        return self.encoded.decode(self.images.device)

    def split(self, parts: int) -> "list[BatchSlice]":
        """Equal parts, for gradient accumulation."""
        size = len(self.keys) // parts
        return [BatchSlice(self, slice(part * size, (part + 1) * size)) for part in range(parts)]

    def release(self) -> None:
        """Give the buffers back."""
        self.encoded.release()


class BatchSlice:
    """Some rows of a batch."""

    def __init__(self, whole: DistillBatch, rows: slice) -> None:
        self.keys = whole.keys[rows]
        self.images = whole.images[rows]
        self.targets = {teacher: take_rows(targets, rows) for teacher, targets in whole.targets.items()}

    def split(self, parts: int) -> "list[BatchSlice]":
        """A slice is split no further."""
        raise NotImplementedError

    def release(self) -> None:
        """The whole batch holds the buffers."""


def take_rows(targets: Targets, rows: slice) -> Targets:
    """The same targets of some images."""
    if isinstance(targets, FeatureMaps):
        return targets.apply(lambda map_: map_[rows])
    return TargetMaps(targets.levels, tuple(_rows(target, rows) for target in targets))


def _rows(target: Target, rows: slice) -> Target:
    if isinstance(target, ProjectedTarget):
        return ProjectedTarget(target.map[rows], target.leftover[rows], target.teacher_grid)
    return target[rows]


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32 of ImageNet's mean 0 and deviation 1."""
    mean, std = (images.new_tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class CachedBatches:
    """Endless training batches from a cache; a pure function of the order's seed and the step.

    `device` is where they go, `workers` how many processes decode images.
    """

    cache: FeatureCache
    order: ReadingOrder
    device: torch.device
    workers: int = 0
    jitter: PhotometricJitter | None = None

    @cached_property
    def features(self) -> FeatureBatches:
        """The reader of encoded features."""
        return FeatureBatches(self.cache, self.order, pin=self.device.type == "cuda")

    @property
    def steps_per_epoch(self) -> int:
        """Batches of epoch 0; later views may lack a few samples."""
        return self.features.batches_in(0)

    def start_at(self, step: int) -> Iterator[DistillBatch]:
        """Batches from global step `step` on; ReplayError where an image is not the one that the teachers saw."""
        state = self.state_at(step)
        dataset = ViewDataset(self.cache.universe, self.cache.view_policy, self.jitter, self.order.seed)
        images = load_images(dataset, self._wanted(state), workers=self.workers, pin=self.device.type == "cuda")
        self.features.load_state(state)
        while True:
            for encoded in self.features:
                yield join(next(images), encoded, self.device)

    def state_at(self, step: int) -> BatchState:
        """The epoch, and the batch in it, of a global step."""
        epoch = 0
        while step >= self.features.batches_in(epoch):
            step -= self.features.batches_in(epoch)
            epoch += 1
        return BatchState(epoch, step)

    def _wanted(self, state: BatchState) -> Iterator[Wanted]:
        epoch, first = state.epoch, state.batches
        while True:
            view = self.features.view_of(epoch)
            for number in range(first, self.features.batches_in(epoch)):
                yield Wanted(self.features.part(epoch, number).samples.tolist(), view, epoch)
            epoch, first = epoch + 1, 0


def join(images: ViewImages, encoded: EncodedBatch, device: torch.device) -> DistillBatch:
    """Images and features of the same samples, proved to be of the same pixels."""
    differing = np.flatnonzero(images.crcs != encoded.views.crcs)
    if len(differing):
        row = int(differing[0])
        raise ReplayError(
            f"sample {encoded.keys[row]!r}, view {encoded.view}: the pixels (CRC {images.crcs[row]:08x}) are not those "
            f"the teachers saw ({encoded.views.crcs[row]:08x}): the image, or the version of Pillow, is another one"
        )
    return DistillBatch(images.pixels.to(device, non_blocking=True), encoded)
