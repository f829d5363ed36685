"""Smooth noise in space, and hashes of lattice cells; compiled, deterministic, no tables."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
