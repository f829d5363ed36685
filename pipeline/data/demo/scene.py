"""A scene: things in their places, lights, sky and a camera; and the arrays the ray caster reads."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.data.demo.classes import CLASS_ID
from pipeline.data.demo.materials import PATTERNS, Colour
from pipeline.data.demo.rays import Geometry
from pipeline.data.demo.shapes import PLANE, Array, Shape, Thing, Vec, reaches, turn
from pipeline.data.demo.tree import grow_tree
from pipeline.data.demo.vectors import dots, turned


@dataclass(frozen=True)
class Placed:
    """A thing at a place of the world, turned by `yaw` radians; one instance."""

    thing: Thing
    position: Vec
    yaw: float = 0.0

    @property
    def half(self) -> tuple[float, float]:
        """Half the extent of its footprint along the world's x and z, as turned."""
        x, _, z = self.thing.half
        c, s = abs(np.cos(self.yaw)), abs(np.sin(self.yaw))
        return float(c * x + s * z), float(s * x + c * z)


@dataclass(frozen=True)
class Light:
    """A sun (`place` is the direction towards it) or a lamp (`place` is where it hangs, in metres).

    `openings` (k, 2, 3) are the low and high corners of the windows that let a sun into a room; None lets it in
    everywhere. Light without shadow stands for what other surfaces throw back.
    """

    place: Vec
    colour: Colour
    sun: bool = False
    openings: Array | None = None
    shadow: bool = True


@dataclass(frozen=True)
class Sky:
    """Ambient light from above and below, and what is seen where nothing is hit; haze is per metre."""

    above: Colour
    below: Colour
    horizon: Colour = (0.0, 0.0, 0.0)
    zenith: Colour = (0.0, 0.0, 0.0)
    clouds: float = 0.0
    haze: float = 0.0
    key: float = 0.0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `focal` is in units of the image's longer side. Axes: right, up, and back to the viewer."""

    position: Vec
    target: Vec
    focal: float
    roll: float = 0.0

    @cached_property
    def axes(self) -> Array:
        """Rows right, up, back in world coordinates, (3, 3): `axes @ v` is v as the camera sees it."""
        back = np.array(self.position) - np.array(self.target)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        level = np.stack([right, np.cross(back, right), back])
        axes: Array = turn(roll=self.roll) @ level
        return axes

    def rays(self, columns: Array, rows: Array, size: tuple[int, int]) -> Array:
        """Unit directions (n, 3) in the world through image places (pixel centres lie at + 0.5)."""
        height, width = size
        focal = self.focal * max(height, width)
        seen = np.stack([(columns - width / 2) / focal, (height / 2 - rows) / focal, np.full(len(rows), -1.0)], axis=1)
        directions = turned(seen, self.axes.T)
        unit: Array = directions / np.sqrt(dots(directions, directions))[:, None]
        return unit


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture. Instance i (from 1) is `placed[i - 1]`; `subject` is the main class."""

    kind: str
    placed: tuple[Placed, ...]
    lights: tuple[Light, ...]
    sky: Sky
    camera: Camera
    subject: str


@dataclass(frozen=True)
class Packed:
    """A scene as arrays over its n shapes: geometry, and what each shape is and looks like."""

    geometry: Geometry
    kind: NDArray[np.int64]
    size: Array
    instance: NDArray[np.int64]
    semantic: NDArray[np.int64]
    part: NDArray[np.int64]
    pattern: NDArray[np.int64]
    first: Array
    second: Array
    look: Array
    """(n, 4): scale, gloss, glow, key of the material."""


def pack(placed: tuple[Placed, ...]) -> Packed:
    """Lay out the shapes of all things for the ray caster."""
    shapes = [shape for item in placed for shape in item.thing.shapes]
    counts = [len(item.thing.shapes) for item in placed]
    owner = np.repeat(np.arange(len(placed)), counts)
    turns = np.array([turn(yaw=item.yaw) for item in placed])[owner]
    places = np.array([item.position for item in placed])[owner]
    centre = np.einsum("nij,nj->ni", turns, np.array([shape.centre for shape in shapes])) + places
    rotation = np.einsum("nij,njk->nik", turns, np.array([shape.rotation for shape in shapes]))
    size = np.array([shape.size for shape in shapes])
    semantic = np.array([CLASS_ID[item.thing.name] for item in placed])[owner]
    materials = [shape.material for shape in shapes]
    kind = np.array([shape.kind for shape in shapes])
    return Packed(
        _geometry(shapes, kind, centre, rotation, size),
        kind,
        size,
        owner + 1,
        semantic,
        np.array([shape.part for shape in shapes]),
        np.array([PATTERNS.index(material.pattern) for material in materials]),
        np.array([material.first for material in materials]),
        np.array([material.second for material in materials]),
        np.array([(material.scale, material.gloss, material.glow, material.key) for material in materials]),
    )


def _geometry(shapes: list[Shape], kind: NDArray[np.int64], centre: Array, rotation: Array, size: Array) -> Geometry:
    bounded = np.flatnonzero(kind != PLANE)
    inverse = rotation.transpose(0, 2, 1) / size[:, :, None]
    others = [(*shape.parameters, float(shape.kind), float(shape.casts)) for shape in shapes]
    table = np.concatenate([inverse.reshape(-1, 9), centre, np.array(others)], axis=1)
    geometry = Geometry(table, np.flatnonzero(kind == PLANE), bounded, np.zeros((2 * max(len(bounded), 1), 8)))
    reach = np.einsum("nij,nj->ni", np.abs(rotation), reaches(shapes)) + 1e-9
    grow_tree(geometry, np.stack([centre - reach, centre + reach]))
    return geometry
