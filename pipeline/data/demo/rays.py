"""Casting rays: the five solids, a tree of boxes around them, and three questions asked of many rays at once.

All compiled code of the ray caster is in this one file because numba's cache notices a change only in the file that
holds the function it compiled, not in those it calls. float64 throughout, no fastmath, no threads: the same scene
gives the same bits in any process.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Vec = tuple[float, float, float]

FAR = 1e30
TINY = 1e-7


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


@njit(cache=True, error_model="numpy")
def _dot(a: Vec, b: Vec) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, error_model="numpy")
def _reciprocal(x: float) -> float:
    """1 / x with zero replaced by something tiny, so that 0 times infinity never arises."""
    return 1.0 / x if abs(x) > 1e-20 else 1e20


@njit(cache=True, error_model="numpy")
def _ball(o: Vec, d: Vec) -> float:
    a, b, c = _dot(d, d), _dot(o, d), _dot(o, o) - 1.0
    root = b * b - a * c
    if root < 0.0:
        return FAR
    near = (-b - np.sqrt(root)) / a
    if near > TINY:
        return near
    far = (-b + np.sqrt(root)) / a
    return far if far > TINY else FAR


@njit(cache=True, error_model="numpy")
def _box(o: Vec, d: Vec) -> float:
    x, y, z = _reciprocal(d[0]), _reciprocal(d[1]), _reciprocal(d[2])
    enter = max(-o[0] * x - abs(x), -o[1] * y - abs(y), -o[2] * z - abs(z))
    leave = min(-o[0] * x + abs(x), -o[1] * y + abs(y), -o[2] * z + abs(z))
    if enter > leave or leave <= TINY:
        return FAR
    return enter if enter > TINY else leave


@njit(cache=True, error_model="numpy")
def _wedge(o: Vec, d: Vec, taper_x: float, taper_z: float) -> float:
    """A block whose sides lean inwards: the part of the ray before all of six planes."""
    enter, leave = -FAR, FAR
    for side in range(6):
        sign = 1.0 if side < 3 else -1.0
        axis = side % 3
        lean = 0.0 if axis == 1 else (taper_x if axis == 0 else taper_z) / 2
        speed = sign * d[axis] + lean * d[1]
        room = 1.0 - lean - sign * o[axis] - lean * o[1]
        if speed < 0.0:
            enter = max(enter, room / speed)
        elif speed > 0.0:
            leave = min(leave, room / speed)
        elif room < 0.0:
            return FAR
    if enter > leave or leave <= TINY:
        return FAR
    return enter if enter > TINY else leave


@njit(cache=True, error_model="numpy")
def _side(o: Vec, d: Vec, taper: float, radius: float) -> float:
    """The first meeting with the mantle of radius `radius` (half way up) that lies between the ends."""
    lean = taper / 2
    grow, here = -lean * d[1], radius - lean * (o[1] + 1.0)
    a = d[0] * d[0] + d[2] * d[2] - grow * grow
    b = o[0] * d[0] + o[2] * d[2] - here * grow
    c = o[0] * o[0] + o[2] * o[2] - here * here
    root = b * b - a * c
    if root < 0.0 or abs(a) < 1e-14:
        return FAR
    best = FAR
    for sign in (-1.0, 1.0):
        t = (-b + sign * np.sqrt(root)) / a
        inside = TINY < t < best and abs(o[1] + t * d[1]) <= 1.0 and here + t * grow >= 0.0
        best = t if inside else best
    return best


@njit(cache=True, error_model="numpy")
def _pillar(o: Vec, d: Vec, taper: float, hole: float) -> float:
    best = _side(o, d, taper, 1.0)
    if hole > 0.0:
        best = min(best, _side(o, d, 0.0, hole))
    if d[1] != 0.0:
        for end in (-1.0, 1.0):
            t = (end - o[1]) / d[1]
            x, z = o[0] + t * d[0], o[2] + t * d[2]
            radius = 1.0 - taper * (end + 1.0) / 2
            if TINY < t < best and hole * hole <= x * x + z * z <= radius * radius:
                best = t
    return best


@njit(cache=True, error_model="numpy")
def _limb(o: Vec, d: Vec, half: float) -> float:
    best = FAR
    a, b = d[0] * d[0] + d[2] * d[2], o[0] * d[0] + o[2] * d[2]
    root = b * b - a * (o[0] * o[0] + o[2] * o[2] - 1.0)
    if root < 0.0:
        return FAR
    if a > 1e-14:
        for sign in (-1.0, 1.0):
            t = (-b + sign * np.sqrt(root)) / a
            best = t if TINY < t < best and abs(o[1] + t * d[1]) <= half else best
    for end in (-half, half):
        t = _ball((o[0], o[1] - end, o[2]), d)
        best = t if t < best and abs(o[1] + t * d[1]) >= half else best
    return best


@njit(cache=True, error_model="numpy")
def _meet(kind: int, o: Vec, d: Vec, first: float, second: float) -> float:
    """Distance to the solid in units of the ray's direction, FAR where it is missed."""
    if kind == 0:
        return _ball(o, d)
    if kind == 1:
        return _box(o, d) if first == 0.0 and second == 0.0 else _wedge(o, d, first, second)
    if kind == 2:
        return _pillar(o, d, first, second)
    if kind == 3:
        return _limb(o, d, first)
    t = -o[1] / d[1] if d[1] != 0.0 else FAR
    return t if t > TINY else FAR


@njit(cache=True, error_model="numpy")
def _block_normal(p: Vec, taper_x: float, taper_z: float) -> Vec:
    x = abs(p[0]) + taper_x * (p[1] + 1.0) / 2
    z = abs(p[2]) + taper_z * (p[1] + 1.0) / 2
    if abs(p[1]) >= x and abs(p[1]) >= z:
        return (0.0, np.sign(p[1]), 0.0)
    if x >= z:
        return (np.sign(p[0]), taper_x / 2, 0.0)
    return (0.0, taper_z / 2, np.sign(p[2]))


@njit(cache=True, error_model="numpy")
def _pillar_normal(p: Vec, taper: float, hole: float) -> Vec:
    radius = np.sqrt(p[0] * p[0] + p[2] * p[2])
    wall = 1.0 - taper * (p[1] + 1.0) / 2
    outer = abs(radius - wall)
    cap = abs(abs(p[1]) - 1.0)
    if hole > 0.0 and abs(radius - hole) < min(outer, cap):
        return (-p[0], 0.0, -p[2])
    if cap < outer:
        return (0.0, np.sign(p[1]), 0.0)
    return (p[0], wall * taper / 2, p[2])


@njit(cache=True, error_model="numpy")
def _normal(kind: int, p: Vec, first: float, second: float) -> Vec:
    """A local normal of the surface near `p`, of any length."""
    if kind == 0:
        return p
    if kind == 1:
        return _block_normal(p, first, second)
    if kind == 2:
        return _pillar_normal(p, first, second)
    if kind == 3:
        return (p[0], p[1] - min(max(p[1], -first), first), p[2])
    return (0.0, 1.0, 0.0)


@njit(cache=True, error_model="numpy")
def _direction(shapes: Array, n: int, v: Vec) -> Vec:
    """A world direction in the local coordinates of shape `n`."""
    return (
        shapes[n, 0] * v[0] + shapes[n, 1] * v[1] + shapes[n, 2] * v[2],
        shapes[n, 3] * v[0] + shapes[n, 4] * v[1] + shapes[n, 5] * v[2],
        shapes[n, 6] * v[0] + shapes[n, 7] * v[1] + shapes[n, 8] * v[2],
    )


@njit(cache=True, error_model="numpy")
def _place(shapes: Array, n: int, p: Vec) -> Vec:
    """A world point in the local coordinates of shape `n`."""
    return _direction(shapes, n, (p[0] - shapes[n, 9], p[1] - shapes[n, 10], p[2] - shapes[n, 11]))


@njit(cache=True, error_model="numpy")
def _to_shape(shapes: Array, n: int, o: Vec, d: Vec) -> float:
    """Distance along the ray to shape `n`, FAR where it misses."""
    p = _place(shapes, n, o)
    return _meet(int(shapes[n, 14]), p, _direction(shapes, n, d), shapes[n, 12], shapes[n, 13])


@njit(cache=True, error_model="numpy")
def _to_box(nodes: Array, n: int, o: Vec, inverse: Vec) -> float:
    """Where the ray enters the box of node `n`, at most 0 from inside, FAR if it misses; `inverse` is 1 / direction."""
    ax, bx = (nodes[n, 0] - o[0]) * inverse[0], (nodes[n, 3] - o[0]) * inverse[0]
    ay, by = (nodes[n, 1] - o[1]) * inverse[1], (nodes[n, 4] - o[1]) * inverse[1]
    az, bz = (nodes[n, 2] - o[2]) * inverse[2], (nodes[n, 5] - o[2]) * inverse[2]
    enter = max(min(ax, bx), min(ay, by), min(az, bz))
    leave = min(max(ax, bx), max(ay, by), max(az, bz))
    return enter if leave >= max(enter, 0.0) else FAR


@njit(cache=True, error_model="numpy")
def _first_plane(scene: Geometry, o: Vec, d: Vec) -> tuple[int, float]:
    shape, best = -1, FAR
    for candidate in scene.planes:
        t = _to_shape(scene.shapes, candidate, o, d)
        if t < best:
            shape, best = candidate, t
    return shape, best


@njit(cache=True, error_model="numpy")
def _first(scene: Geometry, o: Vec, d: Vec, stack: Array) -> tuple[int, float]:
    """The nearest shape; `stack` (n, 2) holds nodes yet to be entered and where the ray enters them."""
    shapes, nodes = scene.shapes, scene.nodes
    shape, best = _first_plane(scene, o, d)
    inverse = (_reciprocal(d[0]), _reciprocal(d[1]), _reciprocal(d[2]))
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
        for place in range(-left - 1, -left - 1 + right):
            t = _to_shape(shapes, scene.order[place], o, d)
            if t < best:
                best, shape = t, scene.order[place]
    return shape, best


@njit(cache=True, error_model="numpy")
def _anything(scene: Geometry, o: Vec, d: Vec, reach: float, stack: Array) -> bool:
    """Whether a casting shape, planes apart, stands within `reach`."""
    shapes, nodes = scene.shapes, scene.nodes
    inverse = (_reciprocal(d[0]), _reciprocal(d[1]), _reciprocal(d[2]))
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
        for place in range(-left - 1, -left - 1 + right):
            shape = scene.order[place]
            if shapes[shape, 15] > 0.0 and _to_shape(shapes, shape, o, d) < reach:
                return True
    return False


@njit(cache=True, error_model="numpy")
def _write_hit(shapes: Array, hits: Hits, ray: int, o: Vec, d: Vec) -> None:
    n, t = hits.shape[ray], hits.distance[ray]
    p = _place(shapes, n, (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]))
    face = _normal(int(shapes[n, 14]), p, shapes[n, 12], shapes[n, 13])
    x = shapes[n, 0] * face[0] + shapes[n, 3] * face[1] + shapes[n, 6] * face[2]
    y = shapes[n, 1] * face[0] + shapes[n, 4] * face[1] + shapes[n, 7] * face[2]
    z = shapes[n, 2] * face[0] + shapes[n, 5] * face[1] + shapes[n, 8] * face[2]
    length = np.sqrt(x * x + y * y + z * z) * (1.0 if x * d[0] + y * d[1] + z * d[2] <= 0.0 else -1.0)
    hits.normal[ray, 0], hits.normal[ray, 1], hits.normal[ray, 2] = x / length, y / length, z / length
    for axis in range(3):
        hits.local[ray, axis], hits.face[ray, axis] = p[axis], face[axis]


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def _any_plane(scene: Geometry, o: Vec, d: Vec, reach: float) -> bool:
    found = False
    for shape in scene.planes:
        found = found or _to_shape(scene.shapes, shape, o, d) < reach
    return found


@njit(cache=True, error_model="numpy")
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
