"""Labels that follow from others: boundaries from instances, saliency from what stands out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.demo.classes import CLASSES, PERSON

Ids = NDArray[np.int64]

STUFF = np.array([row.stuff for row in CLASSES])

RUNNER_UP = 0.45
"""A thing is salient with the most salient one if it has this share of its prominence."""


def boundaries_of(labels: Ids) -> NDArray[np.bool_]:
    """Pixels (H, W) whose label differs from that of the east, south or south-east neighbour."""
    result = np.zeros(labels.shape, dtype=bool)
    result[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    result[:-1, :] |= labels[:-1, :] != labels[1:, :]
    result[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return result


def prominence(semantic: Ids, instances: Ids) -> NDArray[np.float64]:
    """How far each instance stands out, (instances.max() + 1,): its pixels, more in the middle; persons thrice.

    Sky and stuff have none.
    """
    height, width = instances.shape
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    weight = np.exp(-1.2 * (rows**2 + columns**2)) * ~STUFF[semantic]
    weight = weight * np.where(semantic == PERSON, 3.0, 1.0)
    scores: NDArray[np.float64] = np.bincount(instances.ravel(), weights=weight.ravel()).astype(np.float64)
    return scores


def salient(semantic: Ids, instances: Ids) -> NDArray[np.bool_]:
    """The most prominent thing and those nearly as prominent, (H, W); empty where a picture shows stuff alone."""
    scores = prominence(semantic, instances)
    kept = (scores >= RUNNER_UP * scores.max()) & (scores > 0)
    result: NDArray[np.bool_] = kept[instances]
    return result


def too_small(instances: NDArray[np.integer[Any]], least: float = 0.0004) -> NDArray[np.bool_]:
    """Pixels of instances that show too little to be told what they are; semantic maps leave them out, as VOC does."""
    counts = np.bincount(instances.ravel())
    result: NDArray[np.bool_] = (counts < least * instances.size)[instances]
    return result
