"""The views' pixels: decoded in worker processes, in the order of batches that somebody else decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from pipeline.cache.universe import Universe
from pipeline.data.augment import generator
from pipeline.data.loading import BatchLoader
from pipeline.images.access import ImageAccess
from pipeline.images.decode import decode_rgb
from pipeline.images.views import ViewPolicy, make_view, pixel_crc, render

Numbers = Sequence[int]


@dataclass(frozen=True)
class PhotometricJitter:
    """Colour changes of the student's input alone, drawn from (seed, epoch, key); the targets stay as they are.

    Factors are drawn from [1 - x, 1 + x].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, pixels: Tensor, *, seed: int, epoch: int, key: str) -> Tensor:
        """(3, H, W) uint8 to the same."""
        draws = generator(seed, epoch, f"jitter\0{key}")
        for name in ("brightness", "contrast", "saturation"):
            spread = getattr(self, name)
            factor = float(draws.uniform(1 - spread, 1 + spread))
            if spread:
                pixels = getattr(transforms, f"adjust_{name}")(pixels, factor)
        return pixels


@dataclass(frozen=True)
class Wanted:
    """The images of one process's part of a batch: sample numbers, the view they are seen in, the epoch."""

    samples: Numbers
    view: int
    epoch: int


@dataclass(frozen=True)
class ViewImages:
    """Pixels of some views: (b, 3, H, W) uint8, and their CRCs before any jitter."""

    pixels: Tensor
    crcs: np.ndarray[Any, np.dtype[np.uint32]]


@dataclass
class ViewDataset(BatchLoader[Wanted, ViewImages]):
    """Renders whole batches; safe to pickle into worker processes."""

    universe: Universe
    policy: ViewPolicy
    jitter: PhotometricJitter | None = None
    seed: int = 0
    _access: dict[int, ImageAccess] = field(default_factory=dict)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_access": {}}

    def load(self, wanted: Wanted) -> ViewImages:
        """The pixels of one part of a batch."""
        rendered = [self._render(sample, wanted) for sample in wanted.samples]
        pixels = torch.stack([pixels for pixels, _ in rendered])
        return ViewImages(pixels, np.array([crc for _, crc in rendered], np.uint32))

    def _render(self, sample: int, wanted: Wanted) -> tuple[Tensor, int]:
        index, row = self.universe.image(sample)
        access = self._access.setdefault(id(index), ImageAccess(index))
        key = index.key(row)
        image = decode_rgb(access.read(row))
        values = render(image, make_view(self.policy, key, wanted.view, image.size))
        pixels = torch.from_numpy(values.transpose(2, 0, 1).copy())
        if self.jitter is not None:
            pixels = self.jitter(pixels, seed=self.seed, epoch=wanted.epoch, key=key)
        return pixels, pixel_crc(values)
