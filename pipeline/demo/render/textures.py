"""Patterns: the colour of a surface point, from its place on the surface alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.demo.things.shapes import BLOCK, PLANE, Array, dots


@njit(cache=True)
def _hash(x: int, y: int, z: int) -> float:
    """A number in 0..1 that belongs to a lattice point."""
    h = np.uint64(x & 0xFFFFFFFF) * np.uint64(0x9E3779B1) ^ np.uint64(y & 0xFFFFFFFF) * np.uint64(0x85EBCA77)
    h ^= np.uint64(z & 0xFFFFFFFF) * np.uint64(0xC2B2AE3D)
    h &= np.uint64(0xFFFFFFFF)
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(0x2C1B3C6D)) & np.uint64(0xFFFFFFFF)
    h = ((h ^ (h >> np.uint64(12))) * np.uint64(0x297A2D39)) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(15)
    return float(h) / 4294967295.0


@njit(cache=True)
def _value(x: float, y: float, z: float) -> float:
    """Lattice hashes blended smoothly."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    u, v, w = x - i, y - j, z - k
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    total = 0.0
    for corner in range(8):
        a, b, c = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w)
        total += weight * _hash(i + a, j + b, k + c)
    return total


@njit(cache=True)
def fractal(points: Array, octaves: int) -> Array:
    """Value noise in 0..1 at `points` (n, 3), each octave twice as fine and half as strong as the one before."""
    result = np.zeros(len(points))
    for row in range(len(points)):
        strength, frequency, total = 1.0, 1.0, 0.0
        for octave in range(octaves):
            x, y, z = points[row, 0] * frequency, points[row, 1] * frequency, points[row, 2] * frequency
            result[row] += strength * _value(x + 17.3 * octave, y, z)
            total += strength
            strength, frequency = strength / 2, frequency * 2
        result[row] /= total
    return result


@njit(cache=True)
def cells(points: Array) -> Array:
    """A number in 0..1 for the lattice cell of each point (n, 3), the same all over the cell."""
    result = np.empty(len(points))
    for row in range(len(points)):
        x, y, z = np.floor(points[row, 0]), np.floor(points[row, 1]), np.floor(points[row, 2])
        result[row] = _hash(int(x), int(y), int(z))
    return result


class Places(NamedTuple):
    """Surface points of one pattern, in units of its period.

    `solid` (n, 3) are coordinates in space, `flat` (n, 2) along the surface; `key` (n,) moves the pattern; `footprint`
    (n,) is how many periods a pixel covers: patterns fade to their mean where it nears one.
    """

    solid: Array
    flat: Array
    key: Array
    footprint: Array

    def lifted(self, x: float, y: float) -> Array:
        """The flat coordinates, stretched, as points in space at the key's height."""
        return np.stack([self.flat[:, 0] * x, self.flat[:, 1] * y, self.key], axis=1)


def _faded(mix: Array, footprint: Array, mean: float) -> Array:
    """`mix`, replaced by its mean where a pixel covers a whole period or more."""
    weight = np.clip(1.6 - 2.0 * footprint, 0.0, 1.0)
    return mix * weight + mean * (1.0 - weight)


def _plain(at: Places) -> Array:
    return 0.5 * fractal(at.solid, 1)


def _checker(at: Places) -> Array:
    parity = np.floor(at.flat + 0.013).sum(axis=1) % 2
    return _faded(parity, at.footprint, 0.5)


def _stripes(at: Places) -> Array:
    turned = np.where(at.key % 2 < 1, at.flat[:, 0], at.flat[:, 1])
    return _faded((turned % 1.0 < 0.45).astype(np.float64), at.footprint, 0.45)


def _plaid(at: Places) -> Array:
    bands = (at.flat % 1.0 < 0.4).astype(np.float64).sum(axis=1)
    return _faded(bands / 2, at.footprint, 0.4)


def _dots(at: Places) -> Array:
    from_centre = ((at.flat % 1.0 - 0.5) ** 2).sum(axis=1)
    return _faded((from_centre < 0.08).astype(np.float64), at.footprint, 0.25)


def _mottle(at: Places) -> Array:
    return np.clip(2.2 * fractal(at.solid, 3) - 0.6, 0.0, 1.0)


def _grain(at: Places) -> Array:
    bend = fractal(at.lifted(0.3, 0.06), 2)
    rings = (at.flat[:, 0] + 6.0 * bend) % 1.0
    return _faded(0.75 * rings + 0.25 * fractal(at.lifted(6.0, 0.5), 1), at.footprint, 0.5)


def _planks(at: Places) -> Array:
    row = np.floor(at.flat[:, 0])
    along = at.flat[:, 1] / 7.0 + 0.37 * row
    board = cells(np.stack([row, along, at.key], axis=1))
    seam = (at.flat[:, 0] % 1.0 < 0.05) | (along % 1.0 < 0.008)
    fine = fractal(at.lifted(7.0, 0.5), 2)
    return _faded(np.where(seam, 1.0, 0.5 * board + 0.35 * fine), at.footprint, 0.45)


def _bricks(at: Places) -> Array:
    row = np.floor(at.flat[:, 1] * 2.0)
    along = at.flat[:, 0] + 0.5 * (row % 2)
    joint = (along % 1.0 < 0.06) | ((at.flat[:, 1] * 2.0) % 1.0 < 0.12)
    brick = cells(np.stack([along, row, at.key], axis=1))
    return _faded(np.where(joint, 1.0, 0.45 * brick), at.footprint, 0.35)


def _tiles(at: Places) -> Array:
    joint = (at.flat % 1.0 < 0.04).any(axis=1)
    tile = cells(at.lifted(1.0, 1.0))
    return _faded(np.where(joint, 1.0, 0.25 * tile), at.footprint, 0.2)


def _leaves(at: Places) -> Array:
    coarse, fine = fractal(at.solid / 4.0, 2), fractal(at.solid * 2.0, 2)
    return np.clip(1.3 * coarse + _faded(1.6 * fine, at.footprint, 0.8) - 0.95, 0.0, 1.0)


def _speckle(at: Places) -> Array:
    return 0.5 * fractal(at.solid / 6.0, 2) + _faded(0.5 * cells(at.solid * 3.0), at.footprint, 0.25)


def _facade(at: Places) -> Array:
    column, storey = at.flat[:, 0] % 1.0, at.flat[:, 1] % 1.0
    pane = (column > 0.25) & (column < 0.75) & (storey > 0.3) & (storey < 0.8)
    bar = np.abs(column - 0.5) < 0.02
    dim = 0.8 + 0.2 * cells(at.lifted(1.0, 1.0))
    return _faded(np.where(pane & ~bar, dim, 0.12 * fractal(at.lifted(4.0, 4.0), 2)), at.footprint, 0.25)


def _painting(at: Places) -> Array:
    bands = fractal(at.lifted(1.2, 1.2), 3) + 0.3 * at.flat[:, 1]
    return np.floor((3.0 * bands) % 1.0 * 4.0) / 3.0


PATTERNS: dict[str, Callable[[Places], Array]] = {
    "plain": _plain,
    "checker": _checker,
    "stripes": _stripes,
    "plaid": _plaid,
    "dots": _dots,
    "mottle": _mottle,
    "grain": _grain,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "leaves": _leaves,
    "speckle": _speckle,
    "facade": _facade,
    "painting": _painting,
}
"""Pattern name -> how much of the second colour there is at each place, (n,) in 0..1."""


def unroll(kind: NDArray[np.int64], local: Array, face: Array, size: Array) -> Array:
    """Coordinates along the surface in metres, (n, 2): across and up, or around and up.

    Blocks and planes are seen face by face, the dominant axis of the local normal `face` dropped; round
    shapes are unrolled around their y axis, their ends seen flat.
    """
    metric = local * size
    x, y, z = metric[:, 0], metric[:, 1], metric[:, 2]
    along = np.abs(face)
    upright, end = along[:, 0] >= along[:, 2], along[:, 1] > np.maximum(along[:, 0], along[:, 2])
    faces = np.where(end[:, None], np.stack([x, z], axis=1), np.stack([np.where(upright, z, x), y], axis=1))
    around = np.stack([np.arctan2(local[:, 0], local[:, 2]) * size[:, 0], y], axis=1)
    cap = end & (along[:, 1] > 0.999 * np.sqrt(dots(face, face)))
    round_shape = ~((kind == BLOCK) | (kind == PLANE)) & ~cap
    unrolled: Array = np.where(round_shape[:, None], around, faces)
    return unrolled
