"""Views: which pixels of an image teacher and student share, and the one way of making them.

A view is a pure function of (seed, sample key, view number): box and flip come from SHA-256 of them, so any process, in
any order, on any machine makes the same one, and more views append to those there are. Boxes follow torchvision's
sampling laws; the pixels are what torchvision gives for PIL images.
"""

import math
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

import google_crc32c
import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from pipeline.images.access import MAX_PIXELS
from pipeline.images.source import BadImage, ReplayError
from pipeline.settings import Frozen

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

_ATTEMPTS = 10
_FLIP = 0xFFFFFFFF
_RANDOM_DEFAULTS = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=8192, strict=True)]


class ViewPolicy(Frozen):
    """How views are drawn; part of what a cache's keys are made of. How many views there are is not.

    `random_resized_crop`: torchvision's RandomResizedCrop(size, scale, ratio), then a mirror image with probability
    `hflip` (0.5 where not given). `center_crop`: the evaluation transform, Resize then CenterCrop: the image is scaled
    until it just covers `size` and the middle is cut out. `resize`: the whole image, its aspect ratio not kept.
    `size` is (height, width); one number stands for a square. `scale` is the share of the image's area and `ratio` its
    width over height; only random_resized_crop takes them. `hflip` is 0 by default for the other two.
    """

    kind: Literal["random_resized_crop", "center_crop", "resize"]
    size: tuple[Side, Side]
    scale: tuple[Positive, Positive] | None = None
    ratio: tuple[Positive, Positive] | None = None
    hflip: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_random(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "random_resized_crop":
            return _RANDOM_DEFAULTS | {name: value for name, value in values.items() if value is not None}
        return values

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) else size

    @model_validator(mode="after")
    def _consistent(self) -> "ViewPolicy":
        for name in ("scale", "ratio"):
            bounds = getattr(self, name)
            if bounds is not None and self.kind != "random_resized_crop":
                raise ValueError(f"{name} belongs to random_resized_crop; {self.kind} takes none")
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} must be (least, most), got {bounds}")
        if self.scale is not None and self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area, at most 1, got {self.scale}")
        return self


@dataclass(frozen=True)
class View:
    """The exact pixels: crop `box`, scale it to `scaled`, cut the middle `size` out of that, mirror if `flip`.

    `box` is (left, top, right, bottom) in the image's own pixels; `size` and `scaled` are (height, width). `scaled`
    None means `size`, so that nothing is cut away; only center_crop, whose box is the whole image, has another.
    """

    number: int
    box: tuple[int, int, int, int]
    flip: bool
    size: tuple[int, int]
    scaled: tuple[int, int] | None = None


def make_view(policy: ViewPolicy, key: str, number: int, image_size: tuple[int, int]) -> View:
    """View `number` of the sample `key`, whose image is `image_size` = (width, height) pixels, PIL's order."""
    width, height = image_size
    if width < 1 or height < 1 or number < 0:
        raise ValueError(f"view {number} of an image of {width} x {height}: no such view")
    box, scaled = (0, 0, width, height), None
    if policy.kind == "random_resized_crop":
        box = _random_box(policy, key, number, image_size)
    elif policy.kind == "center_crop":
        scaled = _covering(image_size, policy.size)
    flip = policy.hflip > 0 and _unit(_words(policy.seed, key, number, _FLIP)[0]) < policy.hflip
    return View(number, box, flip, policy.size, scaled if scaled != policy.size else None)


def render(image: Image.Image, view: View) -> Pixels:
    """The view's pixels, uint8 (height, width, 3), of a decoded RGB `image`.

    Crop first, then PIL's bilinear resampling of the crop alone: `resize(box=)` looks across the crop's edges and gives
    other pixels, by up to 78 grey levels. Raises BadImage where a very long image would be scaled beyond MAX_PIXELS.
    """
    left, top, right, bottom = view.box
    if image.mode != "RGB" or left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise ValueError(
            f"box {view.box} of a {image.mode} image of {image.size}: views are cut from RGB images, inside"
        )
    height, width = view.scaled or view.size
    if height * width > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} pixels scaled to {width} x {height} for its middle: too many")
    pixels = image.crop(view.box).resize((width, height), Image.Resampling.BILINEAR)
    if view.scaled is not None:
        pixels = pixels.crop(_middle(view.scaled, view.size))
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(pixels)


def pixel_crc(pixels: Pixels) -> int:
    """CRC32C of the pixels, 32 bits; 16 microseconds for a view of 384 x 384."""
    return int(google_crc32c.value(np.ascontiguousarray(pixels)))


def replay(image: Image.Image, view: View, crc: int, *, key: str) -> Pixels:
    """The view's pixels, proved to be those whose `crc` was recorded; ReplayError names the sample otherwise."""
    pixels = render(image, view)
    if (actual := pixel_crc(pixels)) != crc:
        raise ReplayError(
            f"sample {key!r}, view {view.number}, box {view.box}: pixels have CRC {actual:08x}, recorded {crc:08x}; "
            "the image or the version of Pillow or libjpeg is not the one the features were made with"
        )
    return pixels


def _words(seed: int, key: str, number: int, counter: int) -> tuple[int, int, int, int]:
    """Four independent uniform 64-bit words; the key comes last, so no two arguments share an input."""
    digest = sha256(b"sak view 1\0" + struct.pack("<QQI", seed, number, counter) + key.encode()).digest()
    return struct.unpack("<4Q", digest)


def _unit(word: int) -> float:
    """A word as a number in [0, 1)."""
    return (word >> 11) * 2.0**-53


def _below(word: int, bound: int) -> int:
    """A word as an integer in [0, bound), uniform to 2^-40 for any image."""
    return (word * bound) >> 64


def _random_box(policy: ViewPolicy, key: str, number: int, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """As RandomResizedCrop.get_params of torchvision: uniform area, log-uniform ratio, ten tries, then the middle."""
    if policy.scale is None or policy.ratio is None:
        raise ValueError("a random_resized_crop without scale and ratio")
    (width, height), (least, most) = image_size, policy.scale
    log_least, log_most = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for attempt in range(_ATTEMPTS):
        area, ratio, down, right = _words(policy.seed, key, number, attempt)
        target = width * height * (least + (most - least) * _unit(area))
        aspect = math.exp(log_least + (log_most - log_least) * _unit(ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = _below(right, width - w + 1), _below(down, height - h + 1)
            return left, top, left + w, top + h
    return _widest_middle(image_size, policy.ratio)


def _widest_middle(image_size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The fallback of RandomResizedCrop: the largest central box within `ratio` (at least a pixel, unlike there)."""
    width, height = image_size
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _covering(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image scaled until it just covers `size`; torchvision's Resize(side) for a square."""
    (width, height), (h, w) = image_size, size
    return (h, h * width // height) if w * height <= h * width else (w * height // width, w)


def _middle(scaled: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """As CenterCrop of torchvision, of `scaled` to `size`: halves are rounded to even."""
    top, left = round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)
    return left, top, left + size[1], top + size[0]
