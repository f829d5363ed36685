"""From images in [0, 1] to what a tower sees: normalisation, and resizing where a teacher has a size of its own.

Two ways, one interface: `prepare` makes the tower's input from normalised images (B, 3, H, W), `grid` says which part
of the tower's map belongs to an image: (rows, columns) for its (height, width).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.errors import UsageError
from sak.teachers.recipe import Size


class Normalization(NamedTuple):
    """Mean and standard deviation per RGB channel, for images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class FixedSize:
    """Images of one size, fed as they are, or resized to `input_size` (bicubic, antialiased) where that differs.

    The patch convolution leaves pixels beyond the last whole patch unused: patch 14 at 384 sees 378 pixels, 27 patches.
    """

    image_size: Size
    input_size: Size
    patch: int

    def prepare(self, images: Tensor) -> Tensor:
        """Resize where asked; UsageError for images of another size."""
        if tuple(images.shape[-2:]) != self.image_size:
            (height, width), (wanted_height, wanted_width) = images.shape[-2:], self.image_size
            raise UsageError(
                f"images are {height}x{width}, the teacher was built for {wanted_height}x{wanted_width}; "
                f"build it with image_size=({height}, {width})"
            )
        if self.input_size != self.image_size:
            return F.interpolate(images, size=self.input_size, mode="bicubic", align_corners=False, antialias=True)
        return images

    def grid(self, size: Size) -> Size:
        """Whole patches of `size`; of `input_size` where images are resized to it."""
        height, width = size if self.input_size == self.image_size else self.input_size
        return height // self.patch, width // self.patch


@dataclass(frozen=True)
class PaddedSquare:
    """SAM's input: the longest side resized to `side`, zeros at the bottom and the right (published code).

    After normalisation, so padding is the mean colour; bicubic without antialias; sides `int(x * scale + 0.5)`.
    `crop` leaves the patches that hold padding alone out of the maps; the published loss compares all of them.
    """

    side: int
    patch: int
    crop: bool

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, 3, side, side)."""
        size = (images.shape[-2], images.shape[-1])
        height, width = self.resized(size)
        if (height, width) != size:
            images = F.interpolate(images, size=(height, width), mode="bicubic", align_corners=False)
        return F.pad(images, (0, self.side - width, 0, self.side - height))

    def resized(self, size: Size) -> Size:
        """The size of the image inside the square."""
        scale = self.side / max(size)
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def grid(self, size: Size) -> Size:
        """The whole square, or with `crop` the patches that hold some of the image: 50 of 64 rows for 448x576."""
        patches = self.side // self.patch
        if not self.crop:
            return patches, patches
        height, width = self.resized(size)
        return min(-(-height // self.patch), patches), min(-(-width // self.patch), patches)


Preprocessing = FixedSize | PaddedSquare
"""How a teacher's input is made from normalised images."""


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of RGB images as floats; says nothing of their values."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"images must be (B, 3, H, W), got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise UsageError(f"images must be floats in [0, 1], got {images.dtype}; divide bytes by 255")


def check_range(images: Tensor) -> None:
    """Refuse values outside [0, 1] (and NaN); reads two numbers back from the device."""
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(images))
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise UsageError(
            f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "divide bytes by 255 and leave the normalisation to the teacher"
        )
