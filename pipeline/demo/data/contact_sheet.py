"""The contact sheet: scenes as rows, tasks as columns, and a strip of the ImageNet-like pictures below."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.things.classes import CLASSES

COLUMNS = ("image", "semseg", "human_parts", "sal", "normals", "depth", "edge")
TITLES = ("image", "semantic classes", "human parts", "saliency", "surface normals", "depth", "boundaries")

ROWS = 4
"""Scenes shown of each downstream data set."""

PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (120, 120, 126)
GAP, MARGIN, HEAD = 6, 24, 26

STUFF_COLOURS = {
    "sky": (176, 214, 240),
    "wall": (214, 208, 196),
    "floor": (150, 120, 92),
    "ceiling": (236, 234, 228),
    "window": (140, 190, 220),
    "door": (122, 86, 60),
    "grass": (126, 176, 98),
    "road": (96, 98, 106),
    "ground": (198, 180, 144),
    "building": (186, 122, 104),
    "tree": (56, 112, 62),
    "bush": (86, 146, 74),
    "hill": (132, 150, 118),
    "person": (226, 60, 74),
}

PART_COLOURS = (
    (244, 244, 242),
    (232, 92, 80),
    (66, 120, 196),
    (246, 180, 70),
    (120, 190, 110),
    (150, 100, 190),
    (80, 200, 200),
)

VIRIDIS = ((253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))
"""Near to far."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """A scene's panels in the order of COLUMNS, and what to call it."""

    caption: str
    panels: tuple[Picture, ...]
    seen: tuple[str, ...]


def class_colours() -> Picture:
    """A colour for each row of CLASSES, (n, 3)."""
    colours = []
    for number, row in enumerate(CLASSES):
        hue, light = (number * 0.618) % 1.0, (0.72, 0.88, 0.56)[number % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.62, light)
        colours.append(STUFF_COLOURS.get(row.name, (int(red * 255), int(green * 255), int(blue * 255))))
    return np.array(colours, dtype=np.uint8)


def panels(scene: RenderedScene, caption: str) -> Row:
    """All labels of a scene as pictures, (H, W, 3) each."""
    edges = np.where(scene.boundaries, 30, 244).astype(np.uint8)
    sal = np.where(scene.saliency[:, :, None], scene.rgb, 30 + scene.rgb // 6).astype(np.uint8)
    normals = np.clip((scene.normals + 1.0) * 127.5, 0, 255).astype(np.uint8)
    normals[scene.semantic == 0] = 244
    pictures = (
        scene.rgb,
        class_colours()[scene.semantic],
        np.array(PART_COLOURS, dtype=np.uint8)[scene.parts],
        sal,
        normals,
        _depth_colours(scene.depth),
        np.repeat(edges[:, :, None], 3, axis=2),
    )
    shares = np.bincount(scene.semantic.ravel(), minlength=len(CLASSES))
    return Row(caption, pictures, tuple(CLASSES[i].name for i in np.flatnonzero(shares > 0.004 * scene.semantic.size)))


def _depth_colours(depth: NDArray[np.float32]) -> Picture:
    seen = depth > 0
    logs = np.log(np.maximum(depth, 0.05))
    low, high = (logs[seen].min(), logs[seen].max()) if seen.any() else (0.0, 1.0)
    shade = np.clip((logs - low) / max(float(high - low), 1e-6), 0.0, 1.0) * (len(VIRIDIS) - 1)
    below = np.minimum(shade.astype(int), len(VIRIDIS) - 2)
    share = (shade - below)[:, :, None]
    anchors = np.array(VIRIDIS, dtype=np.float64)
    colours = anchors[below] * (1 - share) + anchors[below + 1] * share
    return np.where(seen[:, :, None], colours, 244).astype(np.uint8)


def contact_sheet(rows: Sequence[Row], strip: Mapping[str, Picture], title: str) -> Image.Image:
    """Lay out rows of scenes, the strip of pictures by class, and a legend of the classes that occur."""
    cell = 150
    width = 2 * MARGIN + len(COLUMNS) * (cell + GAP) - GAP
    heights = [round(cell * row.panels[0].shape[0] / row.panels[0].shape[1]) for row in rows]
    across = 10
    small = (width - 2 * MARGIN + GAP) // across - GAP
    strip_rows = -(-len(strip) // across)
    names = [row.name for row in CLASSES if any(row.name in shown.seen for shown in rows)]
    legend_rows = -(-len(names) // 8)
    body = sum(heights) + len(rows) * (GAP + 14)
    height = 2 * MARGIN + 3 * HEAD + body + strip_rows * (small + 18 + GAP) + 2 * HEAD + legend_rows * 18
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), title, INK, font=_font(18))
    for column, name in enumerate(TITLES):
        draw.text((MARGIN + column * (cell + GAP), MARGIN + HEAD), name, INK, font=_font(13))
    top = MARGIN + 2 * HEAD
    for row, tall in zip(rows, heights, strict=True):
        draw.text((MARGIN, top - 2), row.caption, FAINT, font=_font(10))
        for column, picture in enumerate(row.panels):
            _paste(sheet, picture, (MARGIN + column * (cell + GAP), top + 12), (cell, tall), smooth=column in (0, 3))
        top += tall + GAP + 14
    top = _strip(sheet, strip, top + 8, (across, small))
    _legend(draw, names, top, width)
    return sheet


def _paste(sheet: Image.Image, picture: Picture, at: tuple[int, int], size: tuple[int, int], *, smooth: bool) -> None:
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    sheet.paste(Image.fromarray(picture).resize(size, method), at)


def _strip(sheet: Image.Image, strip: Mapping[str, Picture], top: int, grid: tuple[int, int]) -> int:
    draw = ImageDraw.Draw(sheet)
    across, small = grid
    draw.text((MARGIN, top), "ImageNet-like images, by main class", INK, font=_font(13))
    top += HEAD
    for number, (name, picture) in enumerate(strip.items()):
        x, y = MARGIN + number % across * (small + GAP), top + number // across * (small + 18 + GAP)
        _paste(sheet, picture, (x, y + 14), (small, small), smooth=True)
        draw.text((x, y), name, FAINT, font=_font(10))
    return top + -(-len(strip) // across) * (small + 18 + GAP) + 4


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str], top: int, width: int) -> None:
    colours = class_colours()
    numbers = {row.name: number for number, row in enumerate(CLASSES)}
    step = (width - 2 * MARGIN) // 8
    for number, name in enumerate(names):
        x, y = MARGIN + number % 8 * step, top + number // 8 * 18
        red, green, blue = (int(value) for value in colours[numbers[name]])
        draw.rectangle((x, y, x + 12, y + 12), (red, green, blue), outline=FAINT)
        draw.text((x + 18, y - 1), name, INK, font=_font(11))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
