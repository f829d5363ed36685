"""What the processes beside a prediction do: decode images, write pictures; apart, so that they start fast."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.fitted import Fitted, fit
from pipeline.images.decode import decode_photo
from pipeline.images.errors import BadImage
from pipeline.pictures.colour import colour
from pipeline.pictures.compare import prediction_panel
from pipeline.pictures.files import Stored, write_prediction, write_whole
from pipeline.pictures.panel import as_png
from sak.tasks import Dataset

PANELS = "panels"
LEAST_SIDE = 16
"""Pixels; a patch has as many."""


def panel_file(out: Path, name: str) -> Path:
    """Where image `name`'s panel lies."""
    return out / PANELS / f"{name}.png"


@dataclass(frozen=True)
class Wanted:
    """An image's file and the name of its pictures."""

    path: Path
    name: str


@dataclass(frozen=True)
class Photo:
    """A decoded image, (h, w, 3) uint8, and as the network takes it."""

    wanted: Wanted
    pixels: NDArray[np.uint8]
    fitted: Fitted


@dataclass(frozen=True)
class Failure:
    """A file that is no usable image, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PhotoWork:
    """What the processes beside this one do: decode images, write pictures."""

    size: tuple[int, int]
    table: Dataset
    out: Path

    def read(self, wanted: Wanted) -> Photo | Failure:
        """The image, or why there is none."""
        try:
            pixels = np.asarray(decode_photo(wanted.path.read_bytes()))
        except BadImage as error:
            return Failure(wanted.path, str(error))
        except OSError as error:
            return Failure(wanted.path, error.strerror or str(error))
        height, width = pixels.shape[:2]
        if min(height, width) < LEAST_SIDE:
            return Failure(wanted.path, f"{width} x {height} pixels; a prediction needs at least {LEAST_SIDE} a side")
        return Photo(wanted, pixels, fit(pixels.astype(np.float32), self.size))

    def write(self, photo: Photo, predictions: Mapping[str, Stored]) -> None:
        """A picture for each task and the panel of all."""
        name = photo.wanted.name
        for task in self.table:
            path = write_prediction(self.out, task, name, predictions[task.name])
            if task.colouring == "colormap":
                coloured = Image.fromarray(colour(task, predictions[task.name]))
                write_whole(path.with_name(f"{path.name.removesuffix('.npy')}.png"), as_png(coloured))
        sheet = prediction_panel(name, photo.pixels, self.table, predictions)
        write_whole(panel_file(self.out, name), as_png(sheet))


_here: list[PhotoWork] = []


def prepare(work: PhotoWork, alone: bool) -> None:
    """Take the work over; a process of its own (`alone`) computes with one thread."""
    _here[:] = [work]
    if alone:
        torch.set_num_threads(1)


def read(wanted: Wanted) -> Photo | Failure:
    """`PhotoWork.read` of the work that this process has."""
    return _here[0].read(wanted)


def write(photo: Photo, predictions: Mapping[str, Stored]) -> None:
    """`PhotoWork.write` of the work that this process has."""
    _here[0].write(photo, predictions)
