"""The solids a scene is made of, and things: groups of solids that carry one class.

World and things alike: metres, y up, a thing stands on y = 0 around the origin and faces +z.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.things.materials import Material

Array = NDArray[np.float64]
Vec = tuple[float, float, float]

BALL, BLOCK, PILLAR, LIMB, PLANE = range(5)
"""Local solids: unit sphere; |x|, |y|, |z| <= 1; radius 1 and |y| <= 1; radius 1 around |y| <= parameter; y = 0."""

IDENTITY = np.eye(3)


@dataclass(frozen=True, eq=False)
class Shape:
    """One solid: local coordinates l become centre + rotation @ (size * l).

    `parameters`: taper along x and z (block), taper and hole (pillar), half length over radius (limb). A taper of 1
    narrows the top to an edge or a point. `part` numbers PART_NAMES from 1, 0 is no part. Shapes that do not cast
    (glass, lamps) let light pass.
    """

    kind: int
    centre: Array
    rotation: Array
    size: Array
    material: Material
    parameters: tuple[float, float] = (0.0, 0.0)
    part: int = 0
    casts: bool = True


def reaches(shapes: Sequence[Shape]) -> Array:
    """Half the extents of shapes along their own axes, (n, 3), in metres."""
    half = np.array([shape.size for shape in shapes])
    half[:, 1] *= [1.0 + shape.parameters[0] if shape.kind == LIMB else 1.0 for shape in shapes]
    return half


@dataclass(frozen=True, eq=False)
class Thing:
    """Shapes of one class, which become one instance; `half` is half its extent (x, height in full, z).

    `top` is the height of a surface that carries other things, `seat` of one to sit on, where there is one.
    """

    name: str
    shapes: tuple[Shape, ...]
    half: Vec
    top: float | None = None
    seat: float | None = None


def thing(name: str, shapes: Iterable[Shape], *, top: float | None = None, seat: float | None = None) -> Thing:
    """Gather `shapes`, measuring how far they reach from the origin."""
    kept = tuple(shapes)
    centres, rotations = np.array([shape.centre for shape in kept]), np.array([shape.rotation for shape in kept])
    reach = np.abs(centres) + np.einsum("nij,nj->ni", np.abs(rotations), reaches(kept))
    half_x, height, half_z = reach.max(axis=0)
    return Thing(name, kept, (float(half_x), float(height), float(half_z)), top, seat)


def moved(shape: Shape, by: Vec) -> Shape:
    """The shape, shifted by metres."""
    return replace(shape, centre=shape.centre + np.array(by))


def scaled(shape: Shape, by: Vec) -> Shape:
    """The shape, stretched from the origin along x, y and z; its own axes must lie along those unless `by` is even."""
    stretch = np.array(by)
    along = np.abs(shape.rotation.T @ stretch) if len(set(by)) > 1 else stretch
    return replace(shape, centre=shape.centre * stretch, size=shape.size * along)


def clear(shape: Shape) -> Shape:
    """The shape, letting light pass."""
    return replace(shape, casts=False)


def ball(centre: Vec, radii: Vec | float, material: Material, *, rotation: Array = IDENTITY, part: int = 0) -> Shape:
    """An ellipsoid."""
    size = np.array(radii if isinstance(radii, tuple) else (radii, radii, radii), dtype=np.float64)
    return Shape(BALL, np.array(centre, dtype=np.float64), rotation, size, material, part=part)


def block(
    centre: Vec, half: Vec, material: Material, *, rotation: Array = IDENTITY, taper: tuple[float, float] = (0.0, 0.0)
) -> Shape:
    """A box, its top narrowed by `taper` along x and z."""
    return Shape(BLOCK, np.array(centre, dtype=np.float64), rotation, np.array(half), material, taper)


def pillar(centre: Vec, radius: float, half: float, material: Material, *, taper: float = 0.0) -> Shape:
    """An upright cylinder or cone."""
    size = np.array([radius, half, radius])
    return Shape(PILLAR, np.array(centre, dtype=np.float64), IDENTITY, size, material, (taper, 0.0))


def rod(start: Vec, end: Vec, radius: float, material: Material, *, taper: float = 0.0, hole: float = 0.0) -> Shape:
    """A cylinder between two points; `hole` is the inner radius over the outer one (a wheel's rim)."""
    centre, half, rotation = _between(start, end)
    return Shape(PILLAR, centre, rotation, np.array([radius, half, radius]), material, (taper, hole))


def limb(start: Vec, end: Vec, radius: float, material: Material, *, part: int = 0) -> Shape:
    """A cylinder with round ends around the line between two points."""
    centre, half, rotation = _between(start, end)
    return Shape(LIMB, centre, rotation, np.full(3, radius), material, (half / radius, 0.0), part)


def plane(point: Vec, normal: Vec, material: Material, *, up: Vec = (0.0, 0.0, 1.0)) -> Shape:
    """An endless plane; its local z axis is `up`, so that patterns stand upright on walls."""
    y, z = np.array(normal, dtype=np.float64), np.array(up, dtype=np.float64)
    rotation = np.stack([np.cross(y, z), y, z], axis=1)
    return Shape(PLANE, np.array(point, dtype=np.float64), rotation, np.ones(3), material)


def _between(start: Vec, end: Vec) -> tuple[Array, float, Array]:
    first, last = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    along = last - first
    length = max(float(along @ along) ** 0.5, 1e-9)
    return (first + last) / 2, length / 2, towards(along / length)


def towards(direction: Array) -> Array:
    """A rotation that turns the y axis to the unit vector `direction`."""
    x, y, z = (float(value) for value in direction)
    across = (0.0, -z, y) if abs(x) < 0.9 else (-y, x, 0.0)
    length = (across[0] ** 2 + across[1] ** 2 + across[2] ** 2) ** 0.5
    a, b, c = (value / length for value in across)
    return np.array([[y * c - z * b, x, a], [z * a - x * c, y, b], [x * b - y * a, z, c]])


def turn(*, pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0) -> Array:
    """Rotation by radians: roll about z, then pitch about x (positive nods from +y to +z), then yaw about y."""
    cp, sp, cy, sy, cr, sr = cos(pitch), sin(pitch), cos(yaw), sin(yaw), cos(roll), sin(roll)
    return np.array(
        [
            [cy * cr + sy * sp * sr, -cy * sr + sy * sp * cr, sy * cp],
            [cp * sr, cp * cr, -sp],
            [-sy * cr + cy * sp * sr, sy * sr + cy * sp * cr, cy * cp],
        ]
    )


def turned(vectors: Array, rotation: Array) -> Array:
    """`rotation` (3, 3) applied to vectors (n, 3), without the linear algebra library, whose bits vary with threads."""
    result: Array = np.einsum("ij,nj->ni", rotation, vectors)
    return result


def dots(a: Array, b: Array) -> Array:
    """Scalar products of vectors, (..., 3) and (..., 3) -> (...)."""
    result: Array = np.einsum("...i,...i->...", a, b)
    return result
