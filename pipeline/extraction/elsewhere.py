"""Samples that another data set's column of the same spec holds already: a larger data set extracts what is new."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, ColumnPlace
from pipeline.cache.manifest import Manifest
from pipeline.images.index import ShardIndex

Samples = NDArray[np.int64]


def samples_elsewhere(cache: Cache, manifest: Manifest, index: ShardIndex, views: int) -> dict[int, Samples]:
    """By view, the samples of `index`, ascending, whose very image other columns have features of.

    Key and SHA-256 of the image must agree. Readers take the union of the columns.
    """
    held = {view: np.zeros(len(index), bool) for view in range(views)}
    for column in _siblings(cache, manifest):
        other = cache.index(column.place.data)
        rows = other.locate(index.keys())
        shared = np.flatnonzero(rows >= 0)
        same = (index.columns.digest[shared] == other.columns.digest[rows[shared]]).all(1)
        shared = shared[same]
        for view, mask in held.items():
            mask[shared] |= column.present(view)[rows[shared]]
    return {view: np.flatnonzero(mask) for view, mask in held.items()}


def _siblings(cache: Cache, manifest: Manifest) -> Iterator[Column]:
    """The columns of the same teacher and spec key over other data."""
    place = ColumnPlace.of(manifest)
    for other, layers in cache.columns.items():
        if other.name == place.name and other.data != place.data:
            yield from (Column.open(layer, other) for layer in layers)
