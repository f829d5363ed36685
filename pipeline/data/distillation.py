"""Batches for distillation: the views' images joined with the cached features of the same pixels."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.reader.batch import EncodedBatch
from pipeline.cache.reader.batches import BatchState, FeatureBatches, ReadingOrder
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.stores.base import StoredViews
from pipeline.data.augment import IMAGENET_MEAN, IMAGENET_STD
from pipeline.data.loading import PhotometricJitter, ViewDataset, ViewImages, WantedViews, load_batches
from pipeline.images.source import ReplayError
from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.projection import ProjectedTarget, Target, TargetMaps, Targets

Live = Callable[[Tensor], Mapping[str, Targets]]
"""(B, 3, H, W) in [0, 1] to teacher -> targets."""


@dataclass(frozen=True)
class DecodedRows:
    """Samples whose targets need no decoding: some rows of a batch, or (no targets) those whose features are not read.

    `views` is what a cache has on record of their pixels in `view`; None where there is nothing to compare with.
    """

    keys: Sequence[str]
    targets: dict[str, Targets]
    view: int = 0
    views: StoredViews | None = None

    def decode(self, device: torch.device) -> dict[str, Targets]:
        """The targets, which are on the batch's device."""
        del device
        return self.targets

    def release(self) -> None:
        """Nothing was lent."""


class DistillBatch:
    """Images and targets of one rank's part of a batch.

    `images` (B, 3, H, W) uint8 on the device. Targets are decoded (and live teachers run) when first asked for, so
    that this counts as computing, not as waiting for data.
    """

    def __init__(self, images: Tensor, encoded: EncodedBatch | DecodedRows, live: Live | None = None) -> None:
        self.images, self.encoded, self.live = images, encoded, live
        self.keys: Sequence[str] = encoded.keys

    @property
    def inputs(self) -> Tensor:
        """(B, 3, H, W) float32, normalised."""
        return normalise(self.images)

    @cached_property
    def targets(self) -> Mapping[str, Targets]:
        """Teacher -> targets on the images' device."""
        targets = self.encoded.decode(self.images.device)
        return targets if self.live is None else targets | dict(self.live(self.images.float() / 255))

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
    mean, std = (
        images.new_tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images.float() / 255 - mean) / std


def join(
    images: ViewImages, encoded: EncodedBatch | DecodedRows, device: torch.device, live: Live | None = None
) -> DistillBatch:
    """Images and features of the same samples; ReplayError unless both are of the very same pixels."""
    stored = images.crcs if encoded.views is None else encoded.views.crcs
    differing = np.flatnonzero(images.crcs != stored)
    if len(differing):
        row = int(differing[0])
        raise ReplayError(
            f"sample {encoded.keys[row]!r}, view {encoded.view}: the pixels (CRC {images.crcs[row]:08x}) are not those "
            f"the teachers saw ({stored[row]:08x}): the image, or the version of Pillow, is another one"
        )
    return DistillBatch(images.pixels.to(device, non_blocking=True), encoded, live)


@dataclass
class WaitSeconds:
    """Seconds spent waiting, so far, for images and for features; not for the first batch."""

    images: float = 0.0
    features: float = 0.0


@dataclass(frozen=True)
class CachedBatches:
    """Endless training batches from a cache; a pure function of the order's seed and the step.

    `device` is where they go, `workers` how many processes decode images. `live` makes the targets of teachers that
    run beside the training; with `read_features` false nothing but the views' records is read of the cache. With
    `fresh` epoch e sees view e, whether the cache has it or not: all teachers are live then.
    """

    cache: FeatureCache
    order: ReadingOrder
    device: torch.device
    workers: int = 0
    jitter: PhotometricJitter | None = None
    live: Live | None = None
    read_features: bool = True
    fresh: bool = False
    waits: WaitSeconds = field(default_factory=WaitSeconds)

    def __post_init__(self) -> None:
        """Live teachers must see the pixels that the student sees."""
        if self.live is not None and self.jitter is not None:
            raise UsageError("live teachers see the student's own pixels: leave data.brightness and its like at 0")

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
        dataset = ViewDataset(self.cache.sample_table, self.cache.view_policy, self.jitter, self.order.seed)
        images = load_batches(dataset, self._wanted(state), workers=self.workers, pin=self.device.type == "cuda")
        with closing(self._encoded(state)) as encoded:
            yield join(next(images), next(encoded), self.device, self.live)  # the first waits for readers to start
            while True:
                start = time.perf_counter()
                pixels = next(images)
                ready = time.perf_counter()
                stored = next(encoded)
                self.waits.images += ready - start
                self.waits.features += time.perf_counter() - ready
                yield join(pixels, stored, self.device, self.live)

    def state_at(self, step: int) -> BatchState:
        """The epoch, and the batch in it, of a global step."""
        epoch = 0
        while step >= self.features.batches_in(epoch):
            step -= self.features.batches_in(epoch)
            epoch += 1
        return BatchState(epoch, step)

    def remedy(self) -> str:
        """What to do where training waits for data, by what was waited for most."""
        if self.waits.images >= self.waits.features:
            return f"images are decoded too slowly; raise data.workers ({self.workers}), one a core at most"
        rate = f"{self.cache.sample_bytes / 1e6:.2f} MB an image"
        return (
            f"features are read too slowly ({rate}); put the cache on a faster disk, name fewer --teachers or "
            "--levels, or extract with a smaller encoding"
        )

    def _encoded(self, state: BatchState) -> Generator[EncodedBatch | DecodedRows]:
        if not self.read_features:
            for wanted in self._wanted(state):
                yield self._without_features(wanted)
        self.features.load_state(state)
        while True:
            yield from self.features

    def _without_features(self, wanted: WantedViews) -> DecodedRows:
        """What the cache's first teacher has on record of some views; of fresh ones nothing: no teacher saw them."""
        samples = np.asarray(wanted.samples, np.int64)
        keys = self.cache.sample_table.keys(samples)
        if self.fresh:
            return DecodedRows(keys, {}, wanted.view)
        reader = next(iter(self.cache.readers.values()))
        rows = reader.stored_views(wanted.view, samples, reader.parts(wanted.view)[samples].astype(np.int64))
        return DecodedRows(keys, {}, wanted.view, StoredViews(rows, wanted.view, self.cache.view_policy.size))

    def _wanted(self, state: BatchState) -> Iterator[WantedViews]:
        epoch, first = state.epoch, state.batches
        while True:
            view = self.features.view_of(epoch)
            sequence = self.order.sequence(self.cache.samples_in(view), epoch)
            for number in range(first, self.features.batches_in(epoch)):
                yield WantedViews(
                    self.order.part(sequence, number).samples.tolist(), epoch if self.fresh else view, epoch
                )
            epoch, first = epoch + 1, 0
