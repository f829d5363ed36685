"""Casting rays: shapes, a tree of boxes around them, and two questions asked of many rays at once. Compiled.

float64 throughout, no fastmath, no threads: the same scene gives the same bits in any process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.render import solids
from pipeline.demo.render.compiled_files import keep, stamp_of
from pipeline.demo.render.solids import FAR, Vec, inner, meet, normal_at, reciprocal

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_SOURCES = (Path(__file__), Path(solids.__file__))


def _kept(function: Callable[..., Any]) -> Any:
    """Compiled at the first call, or taken from disk unless one of the two files has changed."""
    return keep(inner(function), stamp_of(_SOURCES))


class Geometry(NamedTuple):
    """Shapes as arrays, the indices of planes, and the tree over all other shapes.

    `shapes` (n, 16): inverse (9, row by row; local = inverse @ (p - centre)), centre (3), two parameters, kind, and
    whether it casts. `nodes` (m, 8): low corner, high corner, then two children or, where the first is negative, a
    run of `order`: -(start + 1) and how many. Plain tables, because compiled code pays for every array it is handed
    and for every view of one.
    """

    shapes: Array
    planes: Indices
    order: Indices
    nodes: Array


class Hits(NamedTuple):
    """What rays met first: shape -1 and distance inf where nothing; local points; unit normals towards the ray."""

    shape: Indices
    distance: Array
    local: Array
    face: Array
    normal: Array

    def of(self, rows: Indices) -> "Hits":
        """The hits of some of the rays."""
        return Hits(self.shape[rows], self.distance[rows], self.local[rows], self.face[rows], self.normal[rows])


@inner
def _direction(shapes: Array, n: int, v: Vec) -> Vec:
    """A world direction in the local coordinates of shape `n`."""
    return (
        shapes[n, 0] * v[0] + shapes[n, 1] * v[1] + shapes[n, 2] * v[2],
        shapes[n, 3] * v[0] + shapes[n, 4] * v[1] + shapes[n, 5] * v[2],
        shapes[n, 6] * v[0] + shapes[n, 7] * v[1] + shapes[n, 8] * v[2],
    )


@inner
def _local(shapes: Array, n: int, p: Vec) -> Vec:
    """A world point in the local coordinates of shape `n`."""
    return _direction(shapes, n, (p[0] - shapes[n, 9], p[1] - shapes[n, 10], p[2] - shapes[n, 11]))


@inner
def _to_shape(shapes: Array, n: int, o: Vec, d: Vec) -> float:
    """Distance along the ray to shape `n`, FAR where it misses."""
    p = _local(shapes, n, o)
    return meet(int(shapes[n, 14]), p, _direction(shapes, n, d), shapes[n, 12], shapes[n, 13])


@inner
def _to_box(nodes: Array, n: int, o: Vec, inverse: Vec) -> float:
    """Where the ray enters the box of node `n`, at most 0 from inside, FAR if it misses; `inverse` is 1 / direction."""
    ax, bx = (nodes[n, 0] - o[0]) * inverse[0], (nodes[n, 3] - o[0]) * inverse[0]
    ay, by = (nodes[n, 1] - o[1]) * inverse[1], (nodes[n, 4] - o[1]) * inverse[1]
    az, bz = (nodes[n, 2] - o[2]) * inverse[2], (nodes[n, 5] - o[2]) * inverse[2]
    enter = max(min(ax, bx), min(ay, by), min(az, bz))
    leave = min(max(ax, bx), max(ay, by), max(az, bz))
    return enter if leave >= max(enter, 0.0) else FAR


@inner
def _first_plane(scene: Geometry, o: Vec, d: Vec) -> tuple[int, float]:
    shape, best = -1, FAR
    for candidate in scene.planes:
        t = _to_shape(scene.shapes, candidate, o, d)
        if t < best:
            shape, best = candidate, t
    return shape, best


@inner
def _first(scene: Geometry, o: Vec, d: Vec, stack: Array) -> tuple[int, float]:
    """The nearest shape; `stack` (n, 2) holds nodes yet to be entered and where the ray enters them."""
    shapes, nodes = scene.shapes, scene.nodes
    shape, best = _first_plane(scene, o, d)
    inverse = (reciprocal(d[0]), reciprocal(d[1]), reciprocal(d[2]))
    stack[0, 0], stack[0, 1], depth = 0, -FAR, 1
    while depth > 0:
        depth -= 1
        if stack[depth, 1] >= best:
            continue
        left, right = int(nodes[int(stack[depth, 0]), 6]), int(nodes[int(stack[depth, 0]), 7])
        if left >= 0:
            near, far = _to_box(nodes, left, o, inverse), _to_box(nodes, right, o, inverse)
            if near > far:
                left, right, near, far = right, left, far, near
            if far < best:
                stack[depth, 0], stack[depth, 1], depth = right, far, depth + 1
            if near < best:
                stack[depth, 0], stack[depth, 1], depth = left, near, depth + 1
            continue
        for index in range(-left - 1, -left - 1 + right):
            t = _to_shape(shapes, scene.order[index], o, d)
            if t < best:
                best, shape = t, scene.order[index]
    return shape, best


@inner
def _anything(scene: Geometry, o: Vec, d: Vec, reach: float, stack: Array) -> bool:
    """Whether a casting shape, planes apart, stands within `reach`."""
    shapes, nodes = scene.shapes, scene.nodes
    inverse = (reciprocal(d[0]), reciprocal(d[1]), reciprocal(d[2]))
    stack[0, 0], depth = 0, 1
    while depth > 0:
        depth -= 1
        left, right = int(nodes[int(stack[depth, 0]), 6]), int(nodes[int(stack[depth, 0]), 7])
        if left >= 0:
            if _to_box(nodes, left, o, inverse) < reach:
                stack[depth, 0], depth = left, depth + 1
            if _to_box(nodes, right, o, inverse) < reach:
                stack[depth, 0], depth = right, depth + 1
            continue
        for index in range(-left - 1, -left - 1 + right):
            shape = scene.order[index]
            if shapes[shape, 15] > 0.0 and _to_shape(shapes, shape, o, d) < reach:
                return True
    return False


@inner
def _write_hit(shapes: Array, hits: Hits, ray: int, o: Vec, d: Vec) -> None:
    n, t = hits.shape[ray], hits.distance[ray]
    p = _local(shapes, n, (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]))
    face = normal_at(int(shapes[n, 14]), p, shapes[n, 12], shapes[n, 13])
    x = shapes[n, 0] * face[0] + shapes[n, 3] * face[1] + shapes[n, 6] * face[2]
    y = shapes[n, 1] * face[0] + shapes[n, 4] * face[1] + shapes[n, 7] * face[2]
    z = shapes[n, 2] * face[0] + shapes[n, 5] * face[1] + shapes[n, 8] * face[2]
    length = np.sqrt(x * x + y * y + z * z) * (1.0 if x * d[0] + y * d[1] + z * d[2] <= 0.0 else -1.0)
    hits.normal[ray, 0], hits.normal[ray, 1], hits.normal[ray, 2] = x / length, y / length, z / length
    for axis in range(3):
        hits.local[ray, axis], hits.face[ray, axis] = p[axis], face[axis]


@_kept
def first_hits(scene: Geometry, origin: Array, directions: Array) -> Hits:
    """What rays from one place meet first. `origin`: (3,); `directions`: (n, 3), of length 1."""
    count = len(directions)
    hits = Hits(
        np.full(count, -1, np.int64),
        np.full(count, np.inf),
        np.zeros((count, 3)),
        np.zeros((count, 3)),
        np.zeros((count, 3)),
    )
    stack = np.empty((128, 2))
    o = (origin[0], origin[1], origin[2])
    for ray in range(count):
        d = (directions[ray, 0], directions[ray, 1], directions[ray, 2])
        shape, t = _first(scene, o, d, stack)
        if shape >= 0:
            hits.shape[ray], hits.distance[ray] = shape, t
            _write_hit(scene.shapes, hits, ray, o, d)
    return hits


@inner
def _any_plane(scene: Geometry, o: Vec, d: Vec, reach: float) -> bool:
    found = False
    for shape in scene.planes:
        found = found or _to_shape(scene.shapes, shape, o, d) < reach
    return found


@_kept
def blocked(scene: Geometry, origins: Array, directions: Array, reach: Array, planes: bool) -> NDArray[np.bool_]:
    """Whether a casting shape, or with `planes` a plane, stands within `reach` of each origin; (n,) bool.

    Lights stand inside rooms and above grounds, so shadows leave planes out; ambient light does not.
    """
    count = len(origins)
    result = np.zeros(count, np.bool_)
    stack = np.empty((128, 2))
    for ray in range(count):
        if reach[ray] > 0.0:
            o = (origins[ray, 0], origins[ray, 1], origins[ray, 2])
            d = (directions[ray, 0], directions[ray, 1], directions[ray, 2])
            wall = planes and _any_plane(scene, o, d, reach[ray])
            result[ray] = wall or _anything(scene, o, d, reach[ray], stack)
    return result
