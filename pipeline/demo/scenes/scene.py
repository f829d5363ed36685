"""A scene: things in their places, lights, sky and a camera; and the arrays the ray caster reads."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.demo.things.materials import Colour
from pipeline.demo.things.shapes import Array, Thing, Vec, dots, turn, turned


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
    """A sun (`position` is the direction towards it) or a lamp (`position` is where it hangs, in metres).

    `openings` (k, 2, 3) are the low and high corners of the windows that let a sun into a room; None lets it in
    everywhere. Light without shadow stands for what other surfaces throw back.
    """

    position: Vec
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
