"""Products of many vectors, without the linear algebra library: its bits depend on threads and on places in memory."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def turned(vectors: Array, rotation: Array) -> Array:
    """`rotation` (3, 3) applied to vectors (n, 3), without the linear algebra library, whose bits vary with threads."""
    result: Array = np.einsum("ij,nj->ni", rotation, vectors)
    return result


def dots(a: Array, b: Array) -> Array:
    """Scalar products of vectors, (..., 3) and (..., 3) -> (...)."""
    result: Array = np.einsum("...i,...i->...", a, b)
    return result
