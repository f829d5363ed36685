"""What distillation trains on: the views' images with the targets of the same pixels, decoded when they are needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.cache import FeatureCache
from pipeline.cache.stored_views import StoredViews
from pipeline.data.view_images import ViewImages, Wanted
from pipeline.images.errors import ReplayError
from sak.features import FeatureMaps
from sak.losses.targets import ProjectedTarget, Target, TargetMaps, Targets

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


Live = Callable[[Tensor], Mapping[str, Targets]]
"""(B, 3, H, W) in [0, 1] to teacher -> targets."""


@dataclass(frozen=True)
class DecodedRows:
    """Some samples of a batch whose targets are decoded already."""

    keys: Sequence[str]
    targets: dict[str, Targets]

    def decode(self, device: torch.device) -> dict[str, Targets]:
        """The targets, which are on the batch's device."""
        del device
        return self.targets

    def release(self) -> None:
        """Nothing was lent."""


@dataclass(frozen=True)
class SeenPixels:
    """What a cache says of some samples' pixels, where their features are not read; None of views that it has not."""

    keys: list[str]
    view: int
    views: StoredViews | None

    def decode(self, device: torch.device) -> dict[str, Targets]:
        """No targets."""
        del device
        return {}

    def release(self) -> None:
        """Nothing was lent."""


def seen_pixels(cache: FeatureCache, wanted: Wanted) -> SeenPixels:
    """The records of some views, from the cache's first teacher."""
    samples = np.asarray(wanted.samples, np.int64)
    reader = next(iter(cache.readers.values()))
    rows = reader.stored_views(wanted.view, samples, reader.parts(wanted.view)[samples].astype(np.int64))
    return SeenPixels(cache.universe.keys(samples), wanted.view, StoredViews(rows, wanted.view, cache.view_policy.size))


def unseen_pixels(cache: FeatureCache, wanted: Wanted) -> SeenPixels:
    """Views that no teacher saw before: there is nothing to compare their pixels with."""
    return SeenPixels(cache.universe.keys(np.asarray(wanted.samples, np.int64)), wanted.view, None)


class DistillBatch:
    """Images and targets of one process's part of a batch.

    `images` (B, 3, H, W) uint8 on the device. Targets are decoded (and live teachers run) when first asked for, so
    that this counts as computing, not as waiting for data.
    """

    def __init__(
        self, images: Tensor, encoded: EncodedBatch | SeenPixels | DecodedRows, live: Live | None = None
    ) -> None:
        self.images, self.encoded, self.live = images, encoded, live
        self.keys: Sequence[str] = encoded.keys

    @property
    def inputs(self) -> Tensor:
        """(B, 3, H, W) float32, normalised."""
        return normalise(self.images)

    @cached_property
    def targets(self) -> Mapping[str, Targets]:
        """Teacher -> targets on the images' device."""
        found = self.encoded.decode(self.images.device)
        if self.live is not None:
            found |= self.live(self.images.float() / 255)
        return found

    def split(self, parts: int) -> "list[DistillBatch]":
        """Equal parts, for gradient accumulation; the whole batch holds the buffers."""
        size = len(self.keys) // parts
        return [self._rows(slice(part * size, (part + 1) * size)) for part in range(parts)]

    def _rows(self, rows: slice) -> "DistillBatch":
        targets = {teacher: take_rows(targets, rows) for teacher, targets in self.targets.items()}
        return DistillBatch(self.images[rows], DecodedRows(self.keys[rows], targets))

    def release(self) -> None:
        """Give the buffers back."""
        self.encoded.release()


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


def join(
    images: ViewImages, encoded: EncodedBatch | SeenPixels, device: torch.device, live: Live | None = None
) -> DistillBatch:
    """Images and features of the same samples, proved to be of the same pixels."""
    if encoded.views is not None:
        _refuse_other_pixels(images, encoded.keys, encoded.view, encoded.views)
    return DistillBatch(images.pixels.to(device, non_blocking=True), encoded, live)


def _refuse_other_pixels(images: ViewImages, keys: Sequence[str], view: int, views: StoredViews) -> None:
    differing = np.flatnonzero(images.crcs != views.crcs)
    if len(differing):
        row = int(differing[0])
        raise ReplayError(
            f"sample {keys[row]!r}, view {view}: the pixels (CRC {images.crcs[row]:08x}) are not those the teachers "
            f"saw ({views.crcs[row]:08x}): the image, or the version of Pillow, is another one"
        )
