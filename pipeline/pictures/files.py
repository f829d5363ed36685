"""Predictions as the field's tools read them, one folder a task, one file an image.

semseg, human_parts   8-bit PNG of class numbers with the data set's palette
sal, edge             8-bit grey PNG, trunc(255 p): 255 is certain
normals               8-bit RGB PNG, (n + 1) / 2 * 255 rounded: n = 2 * png / 255 - 1
depth                 .npy, float32 metres (H, W)

A NYUD-v2 label PNG counts its classes from 1; a prediction counts them from 0, as `sak.tasks` names them.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.storage.local import scratch_beside
from sak.errors import SakError
from sak.tasks import Task

Stored = NDArray[Any]


def stored(task: Task, prediction: Tensor) -> Stored:
    """One image's prediction, as `read_output` gives it (1, h, w) or (1, 3, h, w), as it is written.

    uint8 (h, w) classes or grey, uint8 (h, w, 3) normals, float32 (h, w) metres.
    """
    values = prediction[0].cpu()
    if task.colouring == "palette":
        return np.asarray(values.numpy()).astype(np.uint8)
    if task.colouring == "grey":
        return np.asarray((values * 255).numpy()).astype(np.uint8)
    if task.colouring == "normals":
        return stored_normals(values.numpy())
    return np.asarray(values.numpy()).astype(np.float32)


def stored_normals(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """Vectors (3, h, w) with components in -1..1 as colours (h, w, 3)."""
    return np.rint((np.clip(vectors, -1, 1).transpose(1, 2, 0) + 1) / 2 * 255).astype(np.uint8)


def suffix(task: Task) -> str:
    """Of the task's files."""
    return ".npy" if task.colouring == "colormap" else ".png"


def prediction_file(folder: Path, task: Task, name: str) -> Path:
    """Where image `name`'s prediction lies."""
    return folder / task.name / f"{name}{suffix(task)}"


def write_prediction(folder: Path, task: Task, name: str, values: Stored) -> Path:
    """Write a prediction, which appears whole or not at all; returns its place."""
    path = prediction_file(folder, task, name)
    buffer = BytesIO()
    if task.colouring == "colormap":
        np.save(buffer, values, allow_pickle=False)
    else:
        picture(task, values).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return path


def picture(task: Task, values: Stored) -> Image.Image:
    """A stored prediction other than depth as the picture that is written."""
    image = Image.fromarray(values)
    if task.colouring == "palette":
        image = image.convert("P")
        image.putpalette([component for colour in task.palette for component in colour])
    return image


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through a scratch name beside it, making its folder; not forced onto the disk, it can be redone."""
    scratch = scratch_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise SakError(f"{path} cannot be written ({error.strerror}); make room, or choose another folder") from error
