"""Images of any size as a network of one size takes them, and its output at the image's own size again.

As in the published evaluation an image is padded around its centre, and what is predicted for the padding is cut off.
There no image is larger than the network's input. Here (ours) a larger one is first shrunk until it fits, its sides'
ratio kept, and the network's output is resized to the image's own size.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import IGNORE, mark_ignored, normalise
from pipeline.data.sample import TaskSample
from sak.features import bilinear_resize

Size = tuple[int, int]


@dataclass(frozen=True)
class Fitted:
    """An image as a network takes it.

    Attributes:
        image: (3, H, W) float32, normalised, of the network's size.
        size: (height, width) of the image itself.
        window: (top, left, height, width) of the image in its padding.
        scale: by which it was shrunk; 1 where it fitted.
    """

    image: NDArray[np.float32]
    size: Size
    window: tuple[int, int, int, int]
    scale: float


def fit(image: NDArray[np.float32], size: Size) -> Fitted:
    """An RGB image (h, w, 3) in 0..255 at (H, W) `size`; shrinking averages over areas, so that nothing aliases."""
    own = (image.shape[0], image.shape[1])
    scale = min(1.0, size[0] / own[0], size[1] / own[1])
    if scale < 1:
        height, width = (min(max(round(have * scale), 1), want) for have, want in zip(own, size, strict=True))
        shrunk: Any = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        image = shrunk
    height, width = image.shape[:2]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.zeros((3, *size), np.float32)
    canvas[:, top : top + height, left : left + width] = normalise(image).transpose(2, 0, 1)
    return Fitted(canvas, own, (top, left, height, width), scale)


def at_own_size(output: Tensor, fitted: Fitted) -> Tensor:
    """A network's output (B, C, H, W) for the image, before any activation: (B, C, h, w) float32 or better."""
    top, left, height, width = fitted.window
    cut = output[:, :, top : top + height, left : left + width]
    cut = cut.to(torch.promote_types(cut.dtype, torch.float32))
    return cut if (height, width) == fitted.size else bilinear_resize(cut, fitted.size)


def own_labels(sample: TaskSample) -> dict[str, NDArray[np.float32] | NDArray[np.uint8]]:
    """The labels (C, h, w) at the image's own size, 255 where ignored; class numbers as bytes, all else as float32."""
    marked = mark_ignored(sample.labels)
    return {task: _compact(task, np.ascontiguousarray(label.transpose(2, 0, 1))) for task, label in marked.items()}


def valid_pixels(label: NDArray[np.float32] | NDArray[np.uint8]) -> int:
    """How many pixels of a label (C, h, w) are not ignored."""
    return int(np.count_nonzero((label != IGNORE).all(0)))


def _compact(task: str, label: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.uint8]:
    return label if task in ("normals", "depth", "edge") else label.astype(np.uint8)
