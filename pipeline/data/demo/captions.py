"""Captions of scenes: what is seen, how large, where, and beside what, in the words of a small vocabulary."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.demo.classes import CLASSES
from pipeline.data.demo.pool import SCENE_KINDS

LEAST = 0.012
"""Share of the picture from which a thing is worth a word."""

PHRASES = 5
"""Things that a caption names at most."""

SIZES = ("small", "large")
SIDES = ("left", "middle", "right")
HEIGHTS = ("top", "centre", "bottom")
OTHERS = ("a", "two", "several", "at", "the", "and")
PLACES = tuple(kind.replace(" ", "-") for kind in SCENE_KINDS)
WORDS = ("", *dict.fromkeys((*OTHERS, *SIZES, *SIDES, *HEIGHTS, *PLACES, *(row.name for row in CLASSES))))
"""The vocabulary; word 0 fills up what is shorter than the longest caption."""

WORD_ID = {word: number for number, word in enumerate(WORDS)}
LENGTH = 2 + 8 * PHRASES
"""Words of the longest caption."""


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
    things = things_seen(semantic, instances)
    order = rng.permutation(len(things))[:PHRASES]
    phrases = [_phrase(things[place]) for place in order]
    return " ".join([PLACES[kind], " and ".join(phrases)]).strip()


def _phrase(thing: Seen) -> str:
    number = ("a", "two", "several")[min(thing.count, 3) - 1]
    size = SIZES[int(thing.share > 0.1)]
    side, height = SIDES[min(int(3 * thing.x), 2)], HEIGHTS[min(int(3 * thing.y), 2)]
    return f"{number} {size} {thing.name} at the {side} {height}"


def words_of(text: str) -> NDArray[np.int64]:
    """Word numbers (LENGTH,), filled up with 0."""
    numbers = [WORD_ID[word] for word in text.split()]
    result = np.zeros(LENGTH, dtype=np.int64)
    result[: len(numbers)] = numbers
    return result
