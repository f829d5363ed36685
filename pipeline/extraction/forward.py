"""Pixels to a teacher's features on the device, whatever memory it has."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sak.errors import SakError
from sak.features import FeatureMaps
from sak.teachers import Teacher


class DoesNotFitError(SakError):
    """A single image is too much for the device."""

    def __init__(self, teachers: Iterable[str], device: torch.device) -> None:
        """Name the teachers that were asked for and the device."""
        super().__init__(
            f"{', '.join(teachers)}: one image does not fit {device}; extract fewer teachers at a time, "
            "choose precision bf16, or a device with more memory"
        )


def to_images(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 (n, H, W, 3) to what teachers take, float32 (n, 3, H, W) in [0, 1] on the device."""
    there = pixels.to(device, non_blocking=True)
    return there.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def forward_in_pieces(teacher: Teacher, images: Tensor) -> FeatureMaps:
    """A teacher's features of a batch, in halves where the device has no memory for it whole; DoesNotFitError."""
    try:
        return teacher(images)
    except torch.OutOfMemoryError as error:
        if len(images) < 2:
            raise DoesNotFitError([teacher.name], images.device) from error
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(images) // 2
    first, second = (forward_in_pieces(teacher, part) for part in (images[:half], images[half:]))
    return FeatureMaps(first.levels, tuple(torch.cat(pair) for pair in zip(first.maps, second.maps, strict=True)))
