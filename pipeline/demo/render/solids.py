"""The five solids in their local coordinates: where a ray meets them, and their normals. Compiled.

float64 throughout, no fastmath, no threads: the same scene gives the same bits in any process.
"""

import numpy as np
from numba import njit

Vec = tuple[float, float, float]

FAR = 1e30
TINY = 1e-7

# Part of a function that is kept on disk: compiled only when that one is not there yet, and never kept by itself,
# which would hide a change of this file.
inner = njit(error_model="numpy")


@inner
def _dot(a: Vec, b: Vec) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inner
def reciprocal(x: float) -> float:
    """1 / x with zero replaced by something tiny, so that 0 times infinity never arises."""
    return 1.0 / x if abs(x) > 1e-20 else 1e20


@inner
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


@inner
def _box(o: Vec, d: Vec) -> float:
    x, y, z = reciprocal(d[0]), reciprocal(d[1]), reciprocal(d[2])
    enter = max(-o[0] * x - abs(x), -o[1] * y - abs(y), -o[2] * z - abs(z))
    leave = min(-o[0] * x + abs(x), -o[1] * y + abs(y), -o[2] * z + abs(z))
    if enter > leave or leave <= TINY:
        return FAR
    return enter if enter > TINY else leave


@inner
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


@inner
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


@inner
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


@inner
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


@inner
def meet(kind: int, o: Vec, d: Vec, first: float, second: float) -> float:
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


@inner
def _block_normal(p: Vec, taper_x: float, taper_z: float) -> Vec:
    x = abs(p[0]) + taper_x * (p[1] + 1.0) / 2
    z = abs(p[2]) + taper_z * (p[1] + 1.0) / 2
    if abs(p[1]) >= x and abs(p[1]) >= z:
        return (0.0, np.sign(p[1]), 0.0)
    if x >= z:
        return (np.sign(p[0]), taper_x / 2, 0.0)
    return (0.0, taper_z / 2, np.sign(p[2]))


@inner
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


@inner
def normal_at(kind: int, p: Vec, first: float, second: float) -> Vec:
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
