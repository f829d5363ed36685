"""Panels: pictures in a grid with titles and legends, of one image's predictions, and of predictions beside labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.fitted import fit, own_labels, read_at_own_size
from pipeline.data.sample import TaskDataset
from pipeline.pictures.colour import (
    Meaning,
    Pixels,
    Stored,
    colour,
    colour_map,
    depth_limits,
    label_as_stored,
    meaning,
    stored,
)
from pipeline.storage.local import replace_file
from sak.tasks import Dataset, Task

GAP = 10
TITLE = 22
LINE = 17
CHIP = 11
INK, FAINT, PAPER = (30, 41, 59), (100, 116, 139), (255, 255, 255)
TITLE_SIZE, TEXT_SIZE = 15, 12


@dataclass(frozen=True)
class Tile:
    """One picture: RGB pixels, its title, what its colours mean, and whether they may be smoothed when enlarged."""

    pixels: Pixels
    title: str
    meaning: Meaning = field(default_factory=Meaning)
    smooth: bool = False


def panel(tiles: Sequence[Tile | None], *, columns: int = 3, side: int = 320, heading: str = "") -> Image.Image:
    """Tiles in rows of `columns`, each in a square of `side` with its legend below; None leaves a cell free."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    columns = min(columns, len(tiles))
    heights = [_row_height(row, side) for row in rows]
    top = GAP + (TITLE + GAP // 2 if heading else 0)
    sheet = Image.new("RGB", (GAP + columns * (side + GAP), top + sum(heights) + GAP * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        _text(draw, (GAP, GAP), _shortened(draw, heading, sheet.width - 2 * GAP, TITLE_SIZE), TITLE_SIZE, INK)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            if tile is not None:
                _draw(sheet, draw, tile, (GAP + column * (side + GAP), top), side)
        top += height + GAP
    return sheet


def as_png(sheet: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _row_height(row: Sequence[Tile | None], side: int) -> int:
    return max(TITLE + _fitted(tile, side)[1] + _legend_height(tile.meaning, side) for tile in row if tile is not None)


def _fitted(tile: Tile, side: int) -> tuple[int, int]:
    """(width, height) of a tile's picture in its square."""
    height, width = tile.pixels.shape[:2]
    factor = side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], side: int) -> None:
    left, top = at
    width, height = _fitted(tile, side)
    _text(draw, (left, top), _shortened(draw, tile.title, side, TITLE_SIZE), TITLE_SIZE, INK)
    enlarged = width > tile.pixels.shape[1]
    resampling = Image.Resampling.NEAREST if enlarged and not tile.smooth else Image.Resampling.BICUBIC
    sheet.paste(
        Image.fromarray(np.ascontiguousarray(tile.pixels)).resize((width, height), resampling), (left, top + TITLE)
    )
    _legend(draw, sheet, tile.meaning, (left, top + TITLE + height + 5), side)


def _legend_height(meaning: Meaning, side: int) -> int:
    if meaning.classes:
        lines = 1 + max(line for line, _, _, _ in _wrapped(meaning, side))
        return 5 + LINE * lines
    return 5 + LINE if meaning.limits or meaning.note else 0


def _wrapped(meaning: Meaning, side: int) -> Iterator[tuple[int, int, tuple[int, int, int], str]]:
    """(line, left, shade, name) of each class, wrapped at the tile's width."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = left = 0
    for shade, name in meaning.classes:
        width = CHIP + 4 + round(draw.textlength(name, font=_font(TEXT_SIZE))) + 10
        if left and left + width > side:
            line, left = line + 1, 0
        yield line, left, shade, name
        left += width


def _legend(draw: ImageDraw.ImageDraw, sheet: Image.Image, meaning: Meaning, at: tuple[int, int], side: int) -> None:
    left, top = at
    if meaning.limits is not None:
        _scale(draw, sheet, meaning.limits, at, side)
    elif meaning.note:
        _text(draw, at, meaning.note, TEXT_SIZE, FAINT)
    for line, across, shade, name in _wrapped(meaning, side):
        x, y = left + across, top + LINE * line
        draw.rectangle((x, y + 2, x + CHIP, y + 2 + CHIP), fill=shade, outline=FAINT)
        _text(draw, (x + CHIP + 4, y), name, TEXT_SIZE, INK)


def _scale(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, limits: tuple[float, float, str], at: tuple[int, int], side: int
) -> None:
    left, top = at
    low, high = f"{limits[0]:.2f}", f"{limits[1]:.2f} {limits[2]}"
    before, after = (round(draw.textlength(text, font=_font(TEXT_SIZE))) + 6 for text in (low, high))
    width = max(side - before - after, 20)
    bar = Image.fromarray(np.repeat(colour_map()[None], CHIP, axis=0)).resize((width, CHIP))
    _text(draw, (left, top), low, TEXT_SIZE, INK)
    sheet.paste(bar, (left + before, top + 2))
    _text(draw, (left + before + width + 6, top), high, TEXT_SIZE, INK)


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The text, its beginning cut off where it is wider than that: the end of a path tells more."""
    if draw.textlength(text, font=_font(size)) <= width:
        return text
    while text and draw.textlength(f"...{text}", font=_font(size)) > width:
        text = text[1:]
    return f"...{text}"


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int]) -> None:
    draw.text(at, text, fill=ink, font=_font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


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
    for image in images:
        tiles.append(Tile(image.image, image.name, smooth=True))
        tiles += [_tile(task, image, image.labels, f"{title(task)}: label") for task in table]
        tiles.append(None)
        tiles += [_tile(task, image, image.predictions, "prediction", legend=True) for task in table]
    return panel(tiles, columns=1 + len(table), side=side)


def _tile(task: Task, image: Compared, values: Mapping[str, Stored], text: str, *, legend: bool = False) -> Tile:
    """One task's label or prediction; depth in one scale for both, the legend for both below the second."""
    both = [image.labels[task.name], image.predictions[task.name]]
    limits = depth_limits(*both) if task.colouring == "colormap" else None
    meant = meaning(task, *both, limits=limits) if legend else Meaning()
    return Tile(colour(task, values[task.name], limits), text, meant, smooth=_is_smooth(task))


def title(task: Task) -> str:
    """A task's name for people."""
    return TITLES.get(task.name, task.name)


def _is_smooth(task: Task) -> bool:
    return task.colouring != "palette"


@torch.no_grad()
def draw_predictions(
    predict: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    dataset: TaskDataset,
    table: Dataset,
    path: Path,
    *,
    size: tuple[int, int],
    device: torch.device,
    images: Sequence[int],
) -> Path:
    """Labels and predictions of the data set's `images` (numbers); the data set holds every task of the table."""
    compared = [_compared(predict, dataset, table, index, size, device) for index in images]
    replace_file(path, as_png(comparison(table, compared)))
    return path


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Up to `wanted` image numbers evenly over a data set of `count`."""
    wanted = min(wanted, count)
    return tuple((2 * index + 1) * count // (2 * wanted) for index in range(wanted))


def _compared(
    predict: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    dataset: TaskDataset,
    table: Dataset,
    index: int,
    size: tuple[int, int],
    device: torch.device,
) -> Compared:
    sample = dataset[index]
    fitted = fit(sample.image, size)
    outputs = predict(torch.from_numpy(fitted.image)[None].to(device))
    own = own_labels(sample)
    scales = {task.name: fitted.scale if task.metric == "RMSE" else 1.0 for task in table}
    predictions = {
        task.name: stored(task, read_at_own_size(task, outputs[task.name] * scales[task.name], fitted))
        for task in table
    }
    labels = {task.name: label_as_stored(task, own[task.name]) for task in table}
    return Compared(sample.name, sample.image.astype(np.uint8), predictions, labels)
