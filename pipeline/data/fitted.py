"""Images of any size as a network of one size takes them, and its output at the image's own size again.

As in the published evaluation an image is padded around its centre, and what is predicted for the padding is cut off.
There no image is larger than the network's input. Here (ours) a larger one is first shrunk until it fits, its sides'
ratio kept, and the network's output is resized to the image's own size.
"""

from collections.abc import Iterator
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
from sak.metrics.outputs import read_output
from sak.tasks import Task
from sak.teachers.recipe import Size

MOST_VALUES = 2**26
"""Of an output at an image's own size that are held at once: 256 MiB."""


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
        height, width = (min(max(round(side * scale), 1), wanted) for side, wanted in zip(own, size, strict=True))
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


def read_at_own_size(task: Task, output: Tensor, fitted: Fitted) -> Tensor:
    """One image's output (1, C, H, W) as the task's prediction at the image's own size; see `read_output`.

    A large image is read in bands of rows: forty classes of a photo of twelve megapixels would take 2 GB at once.
    """
    height, width = fitted.size
    rows = max(1, MOST_VALUES // (output.shape[1] * width))
    if rows >= height or (height, width) == fitted.window[2:]:
        return read_output(task, at_own_size(output, fitted))
    top, left, inner_height, inner_width = fitted.window
    cut = output[:, :, top : top + inner_height, left : left + inner_width].float()
    return torch.cat([read_output(task, band) for band in _bands(cut, fitted.size, rows)], dim=-2)


def _bands(cut: Tensor, size: Size, rows: int) -> Iterator[Tensor]:
    """`bilinear_resize(cut, size)` in bands of rows."""
    height = cut.shape[-2]
    middle = ((torch.arange(size[0], device=cut.device) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    above = middle.floor().long().clamp(max=height - 1)
    share = (middle - above)[:, None]
    for upper, part in zip(above.split(rows), share.split(rows), strict=True):
        below = (upper + 1).clamp(max=height - 1)
        mixed = cut[:, :, upper] * (1 - part) + cut[:, :, below] * part
        yield bilinear_resize(mixed, (len(upper), size[1]))


def own_labels(sample: TaskSample) -> dict[str, NDArray[np.float32] | NDArray[np.uint8]]:
    """The labels (C, h, w) at the image's own size, 255 where ignored; class numbers as bytes, all else as float32."""
    marked = mark_ignored(sample.labels)
    planes = {task: np.ascontiguousarray(label.transpose(2, 0, 1)) for task, label in marked.items()}
    exact = ("normals", "depth", "edge")
    return {task: label if task in exact else label.astype(np.uint8) for task, label in planes.items()}


def valid_pixels(label: NDArray[np.float32] | NDArray[np.uint8]) -> int:
    """How many pixels of a label (C, h, w) are not ignored."""
    return int(np.count_nonzero((label != IGNORE).all(0)))
