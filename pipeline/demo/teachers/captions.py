"""Captions of scenes: what is seen, how large, where, and beside what, in the words of a small vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.teachers.pool import SCENE_KINDS
from pipeline.demo.things.classes import CLASS_ID, CLASSES, PART_CLASS

LEAST = 0.012
"""Share of the picture from which a thing is worth a word."""

PHRASES = 5
"""Things that a caption names at most."""

REGIONS = 6
"""Things, and parts of people, that get a phrase of their own in one picture, at most."""

LEAST_PART = 0.002
"""Share of the picture from which a part of a person is worth a phrase."""

SIZES = ("small", "large")
SIDES = ("left", "middle", "right")
HEIGHTS = ("top", "centre", "bottom")
OTHERS = ("a", "two", "several", "at", "the", "and")
KIND_WORDS = tuple(kind.replace(" ", "-") for kind in SCENE_KINDS)
PARTS = ("head", "torso", "upper-arm", "lower-arm", "upper-leg", "lower-leg")
"""What the human part classes are called, from 1."""

_NAMES = (*(row.name for row in CLASSES), *PARTS)
WORDS = ("", *dict.fromkeys((*OTHERS, *SIZES, *SIDES, *HEIGHTS, *KIND_WORDS, *_NAMES)))
"""The vocabulary; word 0 fills up what is shorter than the longest caption."""

WORD_ID = {word: number for number, word in enumerate(WORDS)}
LENGTH = 2 + 8 * PHRASES
"""Words of the longest caption."""

PHRASE_LENGTH = 7
"""Words of a phrase."""


@dataclass(frozen=True)
class Seen:
    """A thing in a picture: its class, its share of the picture, its middle in 0..1 from the left and the top."""

    name: str
    share: float
    x: float
    y: float
    count: int = 1


def things_seen(semantic: NDArray[np.integer[Any]], instances: NDArray[np.integer[Any]]) -> list[Seen]:
    """What is worth a word in label maps (H, W), the largest first; things of one class are counted as one entry."""
    height, width = semantic.shape
    rows, columns = np.indices((height, width))
    found: dict[str, list[Seen]] = {}
    for instance in np.unique(instances):
        mask = instances == instance
        share = float(mask.mean())
        if share >= LEAST:
            name = CLASSES[int(semantic[mask][0])].name
            middle = float(columns[mask].mean()) / width, float(rows[mask].mean()) / height
            found.setdefault(name, []).append(Seen(name, share, *middle))
    merged = []
    for name, items in found.items():
        first = max(items, key=lambda item: item.share)
        merged.append(Seen(name, sum(item.share for item in items), first.x, first.y, len(items)))
    return sorted(merged, key=lambda item: -item.share)


def caption(
    semantic: NDArray[np.integer[Any]], instances: NDArray[np.integer[Any]], kind: int, rng: np.random.Generator
) -> str:
    """Such as `kitchen a large fridge at the left top and two chair at the middle bottom`.

    Up to PHRASES of the things, drawn anew each time, in random order.
    """
    return caption_of(things_seen(semantic, instances), kind, rng)


def caption_of(things: Sequence[Seen], kind: int, rng: np.random.Generator) -> str:
    """`caption`, of things that were found before."""
    order = rng.permutation(len(things))[:PHRASES]
    phrases = [_phrase(things[chosen]) for chosen in order]
    return " ".join([KIND_WORDS[kind], " and ".join(phrases)]).strip()


def _phrase(thing: Seen) -> str:
    number = ("a", "two", "several")[min(thing.count, 3) - 1]
    size = SIZES[int(thing.share > 0.1)]
    side, height = SIDES[min(int(3 * thing.x), 2)], HEIGHTS[min(int(3 * thing.y), 2)]
    return f"{number} {size} {thing.name} at the {side} {height}"


@dataclass(frozen=True)
class Regions:
    """What is seen, each with its phrase: things first, then parts of people, REGIONS of either at most.

    `maps` (2, H, W) holds the number of the phrase, from 1, of the thing and of the part at each pixel, 0 where there
    is none; `words` (2 * REGIONS, PHRASE_LENGTH) the phrases, a phrase that is not there being all 0.
    """

    maps: NDArray[np.uint8]
    words: NDArray[np.int64]


def regions_of(
    things: Sequence[Seen],
    semantic: NDArray[np.integer[Any]],
    parts: NDArray[np.integer[Any]],
    rng: np.random.Generator,
) -> Regions:
    """The phrases of what label maps (H, W) show, such as `a large fridge at the left top` or `a small head at ...`."""
    maps = np.zeros((2, *semantic.shape), dtype=np.uint8)
    words = np.zeros((2 * REGIONS, PHRASE_LENGTH), dtype=np.int64)
    for number, chosen in enumerate(rng.permutation(len(things))[:REGIONS]):
        maps[0][semantic == CLASS_ID[things[chosen].name]] = number + 1
        words[number] = words_of(_phrase(things[chosen]), PHRASE_LENGTH)
    if parts.any():
        kinds = np.array(PART_CLASS)[parts]
        rows, columns = np.indices(kinds.shape)
        for kind, name in enumerate(PARTS, start=1):
            mask = kinds == kind
            if (share := float(mask.mean())) >= LEAST_PART:
                middle = float(columns[mask].mean()) / kinds.shape[1], float(rows[mask].mean()) / kinds.shape[0]
                maps[1][mask] = REGIONS + kind
                words[REGIONS + kind - 1] = words_of(_phrase(Seen(name, share, *middle)), PHRASE_LENGTH)
    return Regions(maps, words)


def words_of(text: str, length: int = LENGTH) -> NDArray[np.int64]:
    """Word numbers (length,), filled up with 0."""
    numbers = [WORD_ID[word] for word in text.split()]
    result = np.zeros(length, dtype=np.int64)
    result[: len(numbers)] = numbers
    return result
