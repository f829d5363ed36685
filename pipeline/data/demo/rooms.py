"""A room under construction: shell, floor plan, what hangs on its walls, and its light."""

import numpy as np

from pipeline.data.demo import clutter
from pipeline.data.demo.materials import Colour, Material, Palette, dimmed, shade, tint
from pipeline.data.demo.plan import Plan, Spot
from pipeline.data.demo.scene import Light, Placed, Sky
from pipeline.data.demo.shapes import Thing, Vec, block, plane, thing

FACING = {"back": 0.0, "front": np.pi, "left": np.pi / 2, "right": -np.pi / 2}
"""Walls of a room, and the yaw of what stands against them."""


class Room:
    """A room under construction: its measures, its floor plan, and the windows it has got so far."""

    def __init__(self, p: Palette) -> None:
        self.p = p
        self.half: Spot = (p.uniform(1.9, 3.1), p.uniform(1.8, 2.8))
        self.height = p.uniform(2.4, 3.0)
        self.plan = Plan(p, self.half)
        self.openings: list[list[Vec]] = []
        self._shell()

    def _shell(self) -> None:
        p, (x, z) = self.p, self.half
        paint = tint(p.uniform(0, 1), p.uniform(0.0, 0.35), p.uniform(0.55, 0.95))
        pattern = p.pick(("plain", "plain", "plain", "stripes", "bricks", "dots"))
        wall = p.material(pattern, paint, shade(paint, p.uniform(0.75, 0.9)), p.uniform(0.15, 0.35))
        up = (0.0, 1.0, 0.0)
        walls = [
            plane((0, 0, -z), (0, 0, 1), wall, up=up),
            plane((0, 0, z), (0, 0, -1), wall, up=up),
            plane((-x, 0, 0), (1, 0, 0), wall, up=up),
            plane((x, 0, 0), (-1, 0, 0), wall, up=up),
        ]
        board = p.neutral()
        walls += [block((0, 0.05, s * z), (x, 0.05, 0.015), board) for s in (-1, 1)]
        walls += [block((s * x, 0.05, 0), (0.015, 0.05, z), board) for s in (-1, 1)]
        white = p.material("plain", (0.8, 0.8, 0.78), (0.7, 0.7, 0.68), 1.0)
        self.plan.add(thing("wall", walls), (0, 0, 0))
        self.plan.add(thing("floor", [plane((0, 0, 0), (0, 1, 0), self._floor())]), (0, 0, 0))
        self.plan.add(thing("ceiling", [plane((0, self.height, 0), (0, -1, 0), white)]), (0, 0, 0))

    def _floor(self) -> Material:
        p = self.p
        wood = p.wood()
        stone = tint(p.uniform(0.05, 0.6), p.uniform(0.0, 0.2), p.uniform(0.5, 0.9))
        carpet = tint(p.uniform(0, 1), p.uniform(0.1, 0.5), p.uniform(0.3, 0.7))
        return {
            "planks": p.material("planks", wood.first, wood.second, p.uniform(0.1, 0.2), 0.25),
            "tiles": p.material("tiles", stone, shade(stone, 0.5), p.uniform(0.25, 0.5), 0.3),
            "checker": p.material("checker", stone, shade(stone, 0.35), p.uniform(0.3, 0.5), 0.3),
            "carpet": p.material("speckle", carpet, shade(carpet, 0.5), 0.05),
        }[p.pick(("planks", "planks", "tiles", "checker", "carpet"))]

    def against(self, wall: str, along: float, depth: float) -> Spot:
        """The floor spot `depth` metres before a wall; `along` in -1..1 is the place along it."""
        x, z = self.half
        if wall in ("back", "front"):
            return along * x, (z - depth) * (-1 if wall == "back" else 1)
        return (x - depth) * (-1 if wall == "left" else 1), along * z

    def line(self, thing: Thing, walls: tuple[str, ...] = tuple(FACING)) -> Placed | None:
        """Stand a thing with its back against some wall."""
        for _ in range(10):
            wall = self.p.pick(walls)
            at = self.against(wall, self.p.uniform(-0.8, 0.8), thing.half[2] + 0.03)
            item = self.plan.put(thing, at, FACING[wall])
            if item is not None:
                return item
        return None

    def hang(self, thing: Thing, wall: str, along: float, height: float) -> None:
        """Hang a thing on a wall."""
        x, z = self.against(wall, along, 0.0)
        self.plan.add(thing, (x, height, z), FACING[wall])

    def dress_walls(self, sky: Colour) -> None:
        """A window or two with curtains, a door, pictures; each wall gets one of them in its middle."""
        p = self.p
        walls = [str(wall) for wall in p.rng.permutation(list(FACING))]
        for wall in walls[: 1 + int(p.chance(0.4))]:
            self._window(wall, sky)
        self.hang(clutter.door(p), walls[2], p.uniform(-0.6, 0.6), 0.0)
        for wall in walls[3:] + walls[2:3]:
            for along in (-0.55, 0.0, 0.55):
                if p.chance(0.45):
                    self.hang(clutter.picture(p), wall, along + p.uniform(-0.1, 0.1), p.uniform(1.4, 1.75))

    def _window(self, wall: str, sky: Colour) -> None:
        p = self.p
        half, along, height = (p.uniform(0.45, 0.8), p.uniform(0.45, 0.6)), p.uniform(-0.3, 0.3), p.uniform(1.45, 1.6)
        self.hang(clutter.window(half, p, sky=sky), wall, along, height)
        if p.chance(0.6):
            self.hang(clutter.curtain(half, p), wall, along, height)
        x, z = self.against(wall, along, 0.0)
        across = (half[0], 0.0) if wall in ("back", "front") else (0.0, half[0])
        low, high = (x - across[0], height - half[1], z - across[1]), (x + across[0], height + half[1], z + across[1])
        self.openings.append([low, high])

    def lights(self) -> tuple[tuple[Light, ...], Sky]:
        """Ceiling lamp, sun through the windows, and lamps that stand about; and the ambient light."""
        p, (x, z) = self.p, self.half
        warm = (1.0, p.uniform(0.78, 0.95), p.uniform(0.55, 0.85))
        bright = p.uniform(0.6, 2.0) * (1 if p.chance(0.85) else 0.25)
        lights = [Light((p.uniform(-0.5, 0.5) * x, self.height - 0.2, p.uniform(-0.5, 0.5) * z), dimmed(warm, bright))]
        if self.openings and p.chance(0.7):
            low, high = self.openings[0]
            towards = np.array(low) + np.array(high)
            towards[1] = np.abs(towards).max() * p.uniform(0.4, 0.9)
            towards[[0, 2]] += np.array([p.uniform(-1, 1), p.uniform(-1, 1)]) * np.abs(towards[[0, 2]]).max() * 0.5
            sun = towards / np.linalg.norm(towards)
            place = (float(sun[0]), float(sun[1]), float(sun[2]))
            lights.append(Light(place, dimmed((1.0, 0.9, 0.7), p.uniform(1.5, 3.0)), True, np.array(self.openings)))
        for item in [item for item in self.plan.placed if item.thing.name == "lamp"][:2]:
            at = (item.position[0], item.position[1] + item.thing.half[1] - 0.08, item.position[2])
            lights.append(Light(at, dimmed((1.0, 0.75, 0.45), p.uniform(0.2, 0.6))))
        ambient = p.uniform(0.25, 0.5)
        above = dimmed((0.95, 0.97, 1.0), ambient)
        return tuple(lights), Sky(above, dimmed(warm, ambient * 0.7))
