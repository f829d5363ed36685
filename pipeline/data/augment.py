"""Transforms of a task image with all its labels: what is drawn is a value, so that a draw can be replayed.

Training, in order: scale, crop, flip, photometric distortion, normalise, centred padding, ignore regions. Evaluation
leaves the first four out. Every draw of a sample comes from (seed, epoch, sample name).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.sample import TaskSample

IGNORE = 255.0
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
SCALES = (0.5, 2.0)
CROP_CHECKS = 10
LARGEST_SHARE = 0.75
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18
# What stands around a padded label, by task: normals and depth have no value there; all others are ignored.
PADDING = {"normals": 0.0, "depth": 0.0}

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Photometric:
    """One draw of the photometric distortion; None leaves that step out.

    `brightness` is added, `contrast` and `saturation` multiply, `hue` is added to a hue of 180 steps.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: int | None = None
    contrast_first: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a model takes: image (3, H, W) float32 normalised, labels float32 (C, H, W), 255 where ignored.

    `window` is (top, left, height, width) of the image inside its padding, for predictions at the image's own size.
    """

    name: str
    image: Tensor
    labels: Mapping[str, Tensor]
    size: tuple[int, int]
    window: tuple[int, int, int, int]


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """The source of all draws of one sample in one epoch; the same on every machine and in any order."""
    digest = hashlib.sha256(f"augment\0{seed}\0{epoch}\0{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def for_training(sample: TaskSample, size: tuple[int, int], *, seed: int, epoch: int) -> Prepared:
    """The training augmentation at (H, W) `size`."""
    draws = generator(seed, epoch, sample.name)
    sample = scale(sample, draws.uniform(*SCALES))
    sample = crop(sample, size, corners(sample, size, draws))
    if draws.random() < 0.5:
        sample = flip(sample)
    sample = replace(sample, image=distort(sample.image, draw_photometric(draws)))
    return for_evaluation(sample, size)


def scale(sample: TaskSample, factor: float) -> TaskSample:
    """Resize to (int(H s), int(W s)): the image bilinear, labels nearest; depth is divided by the factor."""
    if factor == 1:
        return sample
    height, width = (int(side * factor) for side in sample.image.shape[:2])
    size = (max(width, 1), max(height, 1))
    image: Any = cv2.resize(sample.image, size, interpolation=cv2.INTER_LINEAR)
    labels: dict[str, Image] = {
        task: cv2.resize(label, size, interpolation=cv2.INTER_NEAREST).reshape(size[1], size[0], -1)
        for task, label in sample.labels.items()
    }
    if "depth" in labels:
        labels["depth"] = labels["depth"] / np.float32(factor)
    return replace(sample, image=image, labels=labels)


def corners(sample: TaskSample, size: tuple[int, int], draws: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Endless (top, left) candidates for a crop."""
    spare = [max(side - wanted, 0) for side, wanted in zip(sample.image.shape[:2], size, strict=True)]
    while True:
        yield int(draws.integers(spare[0] + 1)), int(draws.integers(spare[1] + 1))


def crop(sample: TaskSample, size: tuple[int, int], candidates: Iterator[tuple[int, int]]) -> TaskSample:
    """Cut (H, W) out at the first good candidate; smaller images are cut in the longer side alone.

    Where semseg is loaded, a place is good if it shows at least two classes and none covers 75 % of what is labelled;
    after 10 failures the next is taken unchecked.
    """
    if sample.image.shape[:2] == size:
        return sample
    semseg = sample.labels.get("semseg")
    top, left = next(candidates)
    for _ in range(CROP_CHECKS):
        if semseg is None or is_varied(semseg[top : top + size[0], left : left + size[1]]):
            break
        top, left = next(candidates)
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    labels = {task: label[window] for task, label in sample.labels.items()}
    return replace(sample, image=sample.image[window], labels=labels)


def is_varied(semseg: Image) -> bool:
    """At least two classes other than 255, the largest under 75 % of the labelled pixels."""
    counts = np.bincount(semseg.astype(np.uint8).ravel(), minlength=256)[:255]
    return int((counts > 0).sum()) > 1 and bool(counts.max() / counts.sum() < LARGEST_SHARE)


def flip(sample: TaskSample) -> TaskSample:
    """Mirror left and right; the x component of normals changes sign."""
    labels = {task: label[:, ::-1] for task, label in sample.labels.items()}
    if "normals" in labels:
        labels["normals"] = labels["normals"] * np.array([-1, 1, 1], np.float32)
    return replace(sample, image=sample.image[:, ::-1], labels=labels)


def draw_photometric(draws: np.random.Generator) -> Photometric:
    """Each step with probability one half; contrast before or after the colour steps."""

    def maybe(low: float, high: float) -> float | None:
        return float(draws.uniform(low, high)) if draws.random() < 0.5 else None

    return Photometric(
        contrast_first=bool(draws.random() < 0.5),
        brightness=maybe(-BRIGHTNESS, BRIGHTNESS),
        contrast=maybe(*CONTRAST),
        saturation=maybe(*SATURATION),
        hue=int(draws.integers(-HUE, HUE)) if draws.random() < 0.5 else None,
    )


def distort(image: Image, draw: Photometric) -> Image:
    """Photometric distortion in 8 bits: every step clips to 0..255 and truncates."""
    pixels = _to_8_bit(image)
    if draw.brightness is not None:
        pixels = _linear(pixels, 1.0, draw.brightness)
    if draw.contrast is not None and draw.contrast_first:
        pixels = _linear(pixels, draw.contrast, 0.0)
    pixels = _recolour(pixels, draw)
    if draw.contrast is not None and not draw.contrast_first:
        pixels = _linear(pixels, draw.contrast, 0.0)
    return pixels.astype(np.float32)


def _recolour(pixels: NDArray[np.uint8], draw: Photometric) -> NDArray[np.uint8]:
    """Saturation and hue; the way to 8-bit HSV and back is gone also where neither was drawn (published code)."""
    hsv: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    if draw.saturation is not None:
        hsv[:, :, 1] = _linear(hsv[:, :, 1], draw.saturation, 0.0)
    if draw.hue is not None:
        hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int64) + draw.hue) % 180
    rgb: Any = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return rgb


def _to_8_bit(image: Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))


def _linear(pixels: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
    return _to_8_bit(pixels.astype(np.float32) * np.float32(factor) + np.float32(offset))


def for_evaluation(sample: TaskSample, size: tuple[int, int]) -> Prepared:
    """Normalised, padded around the centre to at least (H, W) `size`, what is to be ignored marked; nothing drawn.

    Larger images keep their size.
    """
    height, width = sample.image.shape[:2]
    rows, columns = (_around(side, wanted) for side, wanted in zip((height, width), size, strict=True))
    image = _pad(normalise(sample.image), rows, columns, 0.0)
    labels = {task: _pad(label, rows, columns, PADDING.get(task, IGNORE)) for task, label in sample.labels.items()}
    return Prepared(
        sample.name,
        _to_tensor(image),
        {task: _to_tensor(label) for task, label in mark_ignored(labels).items()},
        sample.size,
        (rows[0], columns[0], height, width),
    )


def normalise(image: Image) -> Image:
    """0..255 to ImageNet's mean 0 and deviation 1."""
    scaled = image / np.float32(255)
    scaled -= IMAGENET_MEAN
    scaled /= IMAGENET_STD
    return scaled


def _around(side: int, wanted: int) -> tuple[int, int]:
    missing = max(wanted - side, 0)
    return missing // 2, missing - missing // 2


def _pad(values: Image, rows: tuple[int, int], columns: tuple[int, int], fill: float) -> Image:
    if not any((*rows, *columns)):
        return values
    return np.pad(values, (rows, columns, (0, 0)), constant_values=np.float32(fill))


def mark_ignored(labels: Mapping[str, Image]) -> dict[str, Image]:
    """255 where there is nothing to learn: zero-length normals, zero depth, parts of an image that shows none."""
    marked = dict(labels)
    if "normals" in marked:
        x, y, z = (marked["normals"][:, :, component] for component in range(3))
        nothing = (x == 0) & (y == 0) & (z == 0)
        marked["normals"] = np.where(nothing[:, :, None], np.float32(IGNORE), marked["normals"])
    if "depth" in marked:
        marked["depth"] = np.where(marked["depth"] == 0, np.float32(IGNORE), marked["depth"])
    if "human_parts" in marked:
        parts = marked["human_parts"]
        if not ((parts != 0) & (parts != IGNORE)).any():
            marked["human_parts"] = np.full_like(parts, IGNORE)
    return marked


def _to_tensor(values: Image) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
