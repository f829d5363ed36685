"""Predictions and labels as colours, by the task table's `colouring`, and what the colours mean."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.storage.local import replace_file
from sak.tasks import IGNORE, Colour, Task

Stored = NDArray[Any]


def stored(task: Task, prediction: Tensor) -> Stored:
    """One image's prediction, as `read_output` gives it (1, h, w) or (1, 3, h, w), as it is written.

    uint8 (h, w) classes or grey, uint8 (h, w, 3) normals, float32 (h, w) metres.
    """
    values: Stored = prediction[0].cpu().numpy()
    if task.colouring == "normals":
        return stored_normals(values)
    if task.colouring == "colormap":
        return values.astype(np.float32)
    return (values * 255 if task.colouring == "grey" else values).astype(np.uint8)


def stored_normals(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """Vectors (3, h, w) with components in -1..1 as colours (h, w, 3)."""
    return np.rint((np.clip(vectors, -1, 1).transpose(1, 2, 0) + 1) / 2 * 255).astype(np.uint8)


def prediction_file(folder: Path, task: Task, name: str) -> Path:
    """Where image `name`'s prediction lies."""
    return folder / task.name / f"{name}.{'npy' if task.colouring == 'colormap' else 'png'}"


def write_prediction(folder: Path, task: Task, name: str, values: Stored) -> Path:
    """Write a prediction, which appears whole or not at all; returns its place."""
    path = prediction_file(folder, task, name)
    buffer = BytesIO()
    if task.colouring == "colormap":
        np.save(buffer, values, allow_pickle=False)
    else:
        picture(task, values).save(buffer, "PNG")
    replace_file(path, buffer.getvalue())
    return path


def picture(task: Task, values: Stored) -> Image.Image:
    """A stored prediction other than depth as the picture that is written."""
    image = Image.fromarray(values)
    if task.colouring == "palette":
        image = image.convert("P")
        image.putpalette([component for colour in task.palette for component in colour])
    return image


IGNORED: Colour = (224, 224, 192)
"""Pixels labelled 255, as PASCAL VOC draws them; of grey maps and normals too, which have no such colour."""

SHOWN_SHARE = 0.002
"""Classes on a smaller share of the pixels are left out of a legend."""

NOTES = {"normals": "x, y, z as red, green, blue", "grey": "black 0, white 1"}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Meaning:
    """What a picture's colours mean: classes by colour, or a range (low, high, unit) of the colour map, or a note."""

    classes: tuple[tuple[Colour, str], ...] = ()
    limits: tuple[float, float, str] | None = None
    note: str = ""


def label_as_stored(task: Task, label: NDArray[np.generic]) -> Stored:
    """A label (C, h, w), 255 where ignored, as a prediction of it would be stored; ignored pixels stay 255 or NaN."""
    values = np.asarray(label, np.float32)
    ignored = (values == IGNORE).any(0)
    if task.colouring == "palette":
        return values[0].astype(np.uint8)
    if task.colouring == "normals":
        return np.where(ignored[:, :, None], np.array(IGNORED, np.uint8), stored_normals(values))
    return np.where(ignored, np.float32(np.nan), values[0])


def depth_limits(*depths: Stored) -> tuple[float, float]:
    """The range that most of these pixels are in, 1 % left out at either end, for one colour scale of all."""
    known = np.concatenate([depth[np.isfinite(depth)].ravel() for depth in depths])
    if not known.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, (1, 99)))
    return (low, high) if high > low else (low, low + 1e-3)


def colour(task: Task, values: Stored, limits: tuple[float, float] | None = None) -> Pixels:
    """A stored prediction or label (h, w) or (h, w, 3) as RGB (h, w, 3); `limits` of the colour map."""
    if task.colouring == "palette":
        return _palette(task)[values]
    if task.colouring == "normals":
        return values.astype(np.uint8)
    if task.colouring == "grey":
        known = np.isfinite(values)
        grey = values if values.dtype == np.uint8 else np.where(known, values, 0) * 255
        return np.where(
            known[:, :, None], np.repeat(grey.astype(np.uint8)[:, :, None], 3, 2), np.array(IGNORED, np.uint8)
        )
    return _mapped(values, limits or depth_limits(values))


def meaning(task: Task, *pictures: Stored, limits: tuple[float, float] | None = None) -> Meaning:
    """What the colours of these pictures of one task mean: the classes that occur, the commonest first."""
    if task.colouring == "palette":
        counts = np.sum([np.bincount(values.ravel(), minlength=256) for values in pictures], axis=0)
        total = max(int(np.sum(counts)), 1)
        by_count = sorted(range(len(task.classes)), key=lambda number: -int(counts[number]))
        present = [number for number in by_count if counts[number] > SHOWN_SHARE * total]
        named = [(task.palette[number], task.classes[number]) for number in present]
        return Meaning(classes=(*named, *([(IGNORED, "no label")] if counts[IGNORE] else [])))
    if task.colouring == "colormap":
        low, high = limits or depth_limits(*pictures)
        return Meaning(limits=(low, high, task.unit))
    return Meaning(note=NOTES[task.colouring])


@cache
def colour_map() -> Pixels:
    """256 colours from near (bright) to far (dark), (256, 3)."""
    from matplotlib import colormaps

    return (colormaps["magma_r"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _mapped(values: Stored, limits: tuple[float, float]) -> Pixels:
    low, high = limits
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1)
    return np.where(known[:, :, None], colour_map()[np.rint(share * 255).astype(np.uint8)], np.array(IGNORED, np.uint8))


def _palette(task: Task) -> Pixels:
    table = np.tile(np.array(IGNORED, np.uint8), (256, 1))
    table[: len(task.palette)] = task.palette
    return table
