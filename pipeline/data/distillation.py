"""Batches for distillation: the views' images joined with the cached features of the same pixels."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.batches import FeatureBatches
from pipeline.cache.cache import FeatureCache
from pipeline.cache.order import BatchState, ReadingOrder
from pipeline.data.distill_batch import DistillBatch, Live, SeenPixels, join, seen_pixels, unseen_pixels
from pipeline.data.loading import load_batches
from pipeline.data.view_images import PhotometricJitter, ViewDataset, Wanted
from sak.errors import UsageError


@dataclass
class Waits:
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
    waits: Waits = field(default_factory=Waits)

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
        dataset = ViewDataset(self.cache.universe, self.cache.view_policy, self.jitter, self.order.seed)
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

    def _encoded(self, state: BatchState) -> Generator[EncodedBatch | SeenPixels]:
        if not self.read_features:
            for wanted in self._wanted(state):
                yield unseen_pixels(self.cache, wanted) if self.fresh else seen_pixels(self.cache, wanted)
        self.features.load_state(state)
        while True:
            yield from self.features

    def _wanted(self, state: BatchState) -> Iterator[Wanted]:
        epoch, first = state.epoch, state.batches
        while True:
            view = self.features.view_of(epoch)
            sequence = self.order.sequence(self.cache.samples_in(view), epoch)
            for number in range(first, self.features.batches_in(epoch)):
                yield Wanted(self.order.part(sequence, number).samples.tolist(), epoch if self.fresh else view, epoch)
            epoch, first = epoch + 1, 0
