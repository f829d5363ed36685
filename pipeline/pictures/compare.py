"""Predictions as panels: of one image, and beside labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.pictures.colour import Meaning, Pixels, colour, depth_limits, meaning
from pipeline.pictures.files import Stored
from pipeline.pictures.panel import Tile, panel
from sak.tasks import Dataset, Task

TITLES = {
    "semseg": "semantic segmentation",
    "human_parts": "human parts",
    "sal": "saliency",
    "normals": "surface normals",
    "edge": "boundaries",
    "depth": "depth",
}


@dataclass(frozen=True)
class Compared:
    """An image (h, w, 3) with its predictions and labels as they are stored, by task."""

    name: str
    image: Pixels
    predictions: Mapping[str, Stored]
    labels: Mapping[str, Stored]


def prediction_panel(name: str, image: Pixels, table: Dataset, predictions: Mapping[str, Stored]) -> Image.Image:
    """The image and each task's prediction, with what the colours mean."""
    tiles = [Tile(image, "image", smooth=True)]
    for task in table:
        values = predictions[task.name]
        tiles.append(Tile(colour(task, values), title(task), meaning(task, values), smooth=_is_smooth(task)))
    columns = len(tiles) if len(tiles) < 4 else 3
    return panel(tiles, columns=columns, heading=name)


def comparison(table: Dataset, images: Sequence[Compared], *, side: int = 220) -> Image.Image:
    """Two rows an image: labels, and predictions below them, each task in its own column."""
    tiles: list[Tile | None] = []
    for each in images:
        tiles.append(Tile(each.image, each.name, smooth=True))
        tiles += [_tile(task, each, each.labels, f"{title(task)}: label") for task in table]
        tiles.append(None)
        tiles += [_tile(task, each, each.predictions, "prediction", legend=True) for task in table]
    return panel(tiles, columns=1 + len(table), side=side)


def _tile(task: Task, each: Compared, values: Mapping[str, Stored], text: str, *, legend: bool = False) -> Tile:
    """One task's label or prediction; depth in one scale for both, the legend for both below the second."""
    both = [each.labels[task.name], each.predictions[task.name]]
    limits = depth_limits(*both) if task.colouring == "colormap" else None
    told = meaning(task, *both, limits=limits) if legend else Meaning()
    return Tile(colour(task, values[task.name], limits), text, told, smooth=_is_smooth(task))


def title(task: Task) -> str:
    """A task's name for people."""
    return TITLES.get(task.name, task.name)


def _is_smooth(task: Task) -> bool:
    return task.colouring != "palette"
