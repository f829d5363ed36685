"""What things are called, and which number each downstream label set gives them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255


@dataclass(frozen=True)
class SceneClass:
    """A row of the class table.

    `voc` is the class of PASCAL VOC's 21 (0 background), `nyu40` that of NYUDv2's 1..40 (0 unlabelled), `context` the
    name in PASCAL-Context's list. `stuff` is never salient.
    """

    name: str
    voc: int
    nyu40: int
    context: str
    stuff: bool = False


def _stuff(name: str, nyu40: int, context: str) -> SceneClass:
    return SceneClass(name, 0, nyu40, context, stuff=True)


CLASSES = (
    _stuff("sky", 0, "sky"),
    _stuff("wall", 1, "wall"),
    _stuff("floor", 2, "floor"),
    _stuff("ceiling", 22, "ceiling"),
    _stuff("window", 9, "window"),
    _stuff("door", 8, "door"),
    _stuff("curtain", 16, "curtain"),
    _stuff("rug", 20, "rug"),
    _stuff("picture", 11, "picture"),
    _stuff("grass", 0, "grass"),
    _stuff("road", 0, "road"),
    _stuff("ground", 0, "ground"),
    _stuff("building", 0, "building"),
    _stuff("tree", 0, "tree"),
    _stuff("bush", 0, "plant"),
    _stuff("fence", 0, "fence"),
    _stuff("hill", 0, "mountain"),
    _stuff("pole", 38, "pole"),
    SceneClass("rock", 0, 0, "rock"),
    SceneClass("bench", 0, 39, "bench"),
    SceneClass("cabinet", 0, 3, "cabinet"),
    SceneClass("bed", 0, 4, "bed"),
    SceneClass("chair", 9, 5, "chair"),
    SceneClass("sofa", 18, 6, "sofa"),
    SceneClass("table", 11, 7, "table"),
    SceneClass("bookshelf", 0, 10, "shelves"),
    SceneClass("desk", 0, 14, "table"),
    SceneClass("dresser", 0, 17, "cabinet"),
    SceneClass("pillow", 0, 18, "pillow"),
    SceneClass("book", 0, 23, "book"),
    SceneClass("fridge", 0, 24, "fridge"),
    SceneClass("tvmonitor", 20, 25, "tvmonitor"),
    SceneClass("box", 0, 29, "box"),
    SceneClass("person", 15, 31, "person"),
    SceneClass("lamp", 0, 35, "light"),
    SceneClass("bag", 0, 37, "bag"),
    SceneClass("bottle", 5, 40, "bottle"),
    SceneClass("cup", 0, 40, "cup"),
    SceneClass("ball", 0, 40, "ball"),
    SceneClass("pottedplant", 16, 40, "pottedplant"),
    SceneClass("dog", 12, 40, "dog"),
    SceneClass("cat", 8, 40, "cat"),
    SceneClass("bird", 3, 40, "bird"),
    SceneClass("sheep", 17, 0, "sheep"),
    SceneClass("cow", 10, 0, "cow"),
    SceneClass("horse", 13, 0, "horse"),
    SceneClass("aeroplane", 1, 0, "aeroplane"),
    SceneClass("bicycle", 2, 40, "bicycle"),
    SceneClass("boat", 4, 0, "boat"),
    SceneClass("bus", 6, 0, "bus"),
    SceneClass("car", 7, 0, "car"),
    SceneClass("motorbike", 14, 0, "motorbike"),
    SceneClass("train", 19, 0, "train"),
)
"""The class table; a semantic id is a row of it, 0 being what no ray ever hits."""

CLASS_ID = {row.name: number for number, row in enumerate(CLASSES)}

CONTEXT_NUMBERS = {
    "aeroplane": 2,
    "bag": 9,
    "ball": 10,
    "bed": 18,
    "bench": 22,
    "bicycle": 23,
    "bird": 25,
    "boat": 31,
    "book": 33,
    "bottle": 34,
    "box": 37,
    "building": 44,
    "bus": 45,
    "cabinet": 46,
    "car": 59,
    "cat": 65,
    "ceiling": 68,
    "chair": 72,
    "cow": 98,
    "cup": 104,
    "curtain": 105,
    "dog": 113,
    "door": 115,
    "fence": 144,
    "floor": 158,
    "fridge": 170,
    "grass": 187,
    "ground": 189,
    "horse": 207,
    "light": 232,
    "motorbike": 258,
    "mountain": 259,
    "person": 284,
    "picture": 287,
    "pillow": 290,
    "plant": 293,
    "pole": 303,
    "pottedplant": 308,
    "road": 324,
    "rock": 326,
    "rug": 330,
    "sheep": 347,
    "shelves": 349,
    "sky": 360,
    "sofa": 368,
    "table": 397,
    "train": 416,
    "tree": 420,
    "tvmonitor": 427,
    "unknown": 431,
    "wall": 440,
    "window": 454,
}
"""PASCAL-Context's own numbers of the class names used here: LabelMap holds these."""

NYU_NUMBERS = {
    "bag": 55,
    "ball": 60,
    "bed": 157,
    "bench": 204,
    "bicycle": 189,
    "book": 1,
    "bottle": 2,
    "box": 26,
    "cabinet": 3,
    "car": 530,
    "cat": 594,
    "ceiling": 4,
    "chair": 5,
    "cup": 35,
    "curtain": 89,
    "dog": 701,
    "door": 28,
    "floor": 11,
    "light": 62,
    "person": 331,
    "picture": 64,
    "pillow": 119,
    "plant": 82,
    "rug": 130,
    "shelves": 42,
    "sofa": 83,
    "table": 19,
    "television": 172,
    "unknown": 20,
    "wall": 21,
    "window": 59,
}
"""NYUDv2's own numbers of class names; a PASCAL normal is valid where the context class is named here."""

PART_NAMES = (
    *("head", "hair", "lear", "rear", "leye", "reye", "nose", "mouth", "neck", "torso"),
    *("luarm", "ruarm", "llarm", "rlarm", "lhand", "rhand"),
    *("luleg", "ruleg", "llleg", "rlleg", "lfoot", "rfoot"),
)
"""PASCAL-Part's names of a person's parts; part ids number them from 1."""

PART_ID = {name: number for number, name in enumerate(PART_NAMES, start=1)}

PART_CLASS = (0, *[1] * 8, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5, 6, 6, 6, 6)
"""Part id -> human part class: head, torso, upper arm, lower arm and hand, upper leg, lower leg and foot."""

PERSON = CLASS_ID["person"]


def lookup(column: str) -> NDArray[np.uint16]:
    """Semantic id -> number in a label set: `voc`, `nyu40` or `context`."""
    if column == "context":
        return np.array([CONTEXT_NUMBERS[row.context] for row in CLASSES], dtype=np.uint16)
    return np.array([getattr(row, column) for row in CLASSES], dtype=np.uint16)


SUBJECTS = (
    *("aeroplane", "ball", "bed", "bench", "bicycle", "bird", "boat", "bookshelf", "bottle", "bus", "cabinet", "car"),
    *("cat", "chair", "cow", "cup", "dog", "fridge", "horse", "lamp", "motorbike", "person", "pottedplant", "sheep"),
    *("sofa", "table", "train", "tree", "tvmonitor"),
)
"""Main classes of the ImageNet-like images; `.cls` is a row of this table."""
