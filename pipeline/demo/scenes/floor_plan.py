"""Where things stand: a floor plan that keeps them apart, and cameras that look at them."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.demo.scenes.scene import Camera, Placed
from pipeline.demo.things import clutter, furniture
from pipeline.demo.things.materials import Palette
from pipeline.demo.things.people import person
from pipeline.demo.things.shapes import Thing, Vec

Spot = tuple[float, float]

ON_TOPS = (
    clutter.bottle,
    clutter.bottle,
    clutter.cup,
    clutter.cup,
    clutter.books,
    clutter.carton,
    clutter.pottedplant,
    furniture.table_lamp,
    furniture.television,
)
"""What is put on tables and cabinets."""


@dataclass
class FloorPlan:
    """Things placed so far on a floor of half extents `half` (x, z); `palette` draws whatever is random."""

    palette: Palette
    half: Spot
    placed: list[Placed] = field(default_factory=list)
    solid: list[Placed] = field(default_factory=list)

    def add(self, thing: Thing, position: Vec, yaw: float = 0.0) -> Placed:
        """Place something that is in nobody's way: walls, rugs, what stands on a table."""
        item = Placed(thing, position, yaw)
        self.placed.append(item)
        return item

    def put(self, thing: Thing, at: Spot, yaw: float, margin: float = 0.06) -> Placed | None:
        """Stand a thing on the floor, if there is room for it there."""
        item = Placed(thing, (at[0], 0.0, at[1]), yaw)
        x, z = item.half
        if abs(at[0]) + x > self.half[0] or abs(at[1]) + z > self.half[1] or not self.free(at, (x, z), margin):
            return None
        self.placed.append(item)
        self.solid.append(item)
        return item

    def free(self, at: Spot, half: Spot, margin: float) -> bool:
        """Whether a rectangle around `at` keeps `margin` metres from everything that stands."""
        for item in self.solid:
            x, z = item.half
            near_x = abs(at[0] - item.position[0]) < x + half[0] + margin
            near_z = abs(at[1] - item.position[2]) < z + half[1] + margin
            if near_x and near_z:
                return False
        return True

    def scatter(self, thing: Thing, within: tuple[Spot, Spot] | None = None, yaw: float | None = None) -> Placed | None:
        """Stand a thing somewhere free (`within` is a range of x and one of z); None if twelve tries fail."""
        p = self.palette
        (left, right), (back, front) = within or ((-self.half[0], self.half[0]), (-self.half[1], self.half[1]))
        for _ in range(12):
            turned = p.uniform(-np.pi, np.pi) if yaw is None else yaw
            item = self.put(thing, (p.uniform(left, right), p.uniform(back, front)), turned)
            if item is not None:
                return item
        return None

    def furnish_tops(self, busy: float) -> None:
        """Put small things on what has a top; `busy` is the chance of each of three places."""
        p = self.palette
        for item in [item for item in self.placed if item.thing.top is not None and item.thing.name != "bed"]:
            for along in (-0.6, 0.0, 0.6):
                if p.chance(busy):
                    self._set_down(ON_TOPS[int(p.rng.integers(len(ON_TOPS)))](p), item, along)

    def _set_down(self, small: Thing, item: Placed, along: float) -> None:
        """Put a thing on another's top if it fits there, beside what lies there already."""
        x, _, z = item.thing.half
        at = (along * x, self.palette.uniform(-0.3, 0.3) * z)
        spot, top = self.beside(item, at), item.position[1] + (item.thing.top or 0.0)
        reach = max(small.half[0], small.half[2])
        for other in self.placed:
            near = max(other.thing.half[0], other.thing.half[2]) + reach
            apart = max(abs(other.position[0] - spot[0]), abs(other.position[2] - spot[1]))
            if abs(other.position[1] - top) < 0.02 and top > 0 and apart < near:
                return
        if small.half[0] < 0.45 * x and small.half[2] < z and small.half[1] < 0.7:
            self.on_top(small, item, at)

    def on_top(self, small: Thing, item: Placed, at: Spot) -> Placed:
        """Put a thing on another's top, `at` x and z in that one's own axes."""
        x, z = self.beside(item, at)
        top = item.position[1] + (item.thing.top or 0.0)
        return self.add(small, (x, top, z), item.yaw + self.palette.uniform(-0.4, 0.4))

    @staticmethod
    def beside(item: Placed, at: Spot) -> Spot:
        """A place given in a thing's own axes, in the world."""
        c, s = float(np.cos(item.yaw)), float(np.sin(item.yaw))
        return item.position[0] + c * at[0] + s * at[1], item.position[2] - s * at[0] + c * at[1]

    def people(self, count: int, within: tuple[Spot, Spot] | None = None) -> None:
        """Add persons: on free seats first, sometimes, otherwise on their feet."""
        p = self.palette
        seats = [item for item in self.placed if item.thing.seat is not None and item.thing.name != "bed"]
        for _ in range(count):
            if seats and p.chance(0.5):
                seat = seats.pop(int(p.rng.integers(len(seats))))
                side = 0.5 * p.uniform(-1, 1) * max(seat.thing.half[0] - 0.4, 0.0)
                x, z = self.beside(seat, (side, 0.02))
                self.add(person(p, seat=seat.thing.seat), (x, 0.0, z), seat.yaw + p.uniform(-0.15, 0.15))
            else:
                self.scatter(person(p), within)


def somebody(plan: FloorPlan) -> Placed | None:
    """A person to look at, as often as not."""
    people = [item for item in plan.placed if item.thing.name == "person"]
    if not people or plan.palette.chance(0.35):
        return None
    return people[int(plan.palette.rng.integers(len(people)))]


def seen_from(p: Palette, at: Vec, target: Vec, focal: tuple[float, float]) -> Camera:
    """A camera at a place, aimed at another, hardly tilted, its focal length drawn."""
    return Camera(at, target, p.uniform(*focal), p.uniform(-0.05, 0.05))


def portrait(p: Palette, subject: Placed, plan: FloorPlan, keep_in: Spot, fills: tuple[float, float]) -> Camera:
    """A camera that looks at `subject` from before it, so near that it fills about this share of the picture's side.

    Stays within `keep_in` (half extents of the floor) and away from what stands, as far as sixteen tries find.
    """
    x, height, z = subject.thing.half
    low = subject.position[1]
    radius = float(np.sqrt(x * x + z * z + height * height / 4))
    camera = None
    for _ in range(16):
        focal, fill = p.uniform(0.8, 1.3), p.uniform(*fills)
        distance = radius * focal / fill * 1.25 + 0.05
        yaw, pitch = subject.yaw + p.uniform(-1.1, 1.1), p.uniform(0.02, 0.5)
        away = distance * np.cos(pitch)
        at = (subject.position[0] + away * np.sin(yaw), subject.position[2] + away * np.cos(yaw))
        rise = low + height / 2 + distance * np.sin(pitch)
        aim = low + height * p.uniform(0.4, 0.6)
        target = (subject.position[0] + radius * p.uniform(-0.2, 0.2), aim, subject.position[2])
        camera = Camera((float(at[0]), max(float(rise), 0.12), float(at[1])), target, focal, p.uniform(-0.08, 0.08))
        inside = abs(at[0]) < keep_in[0] and abs(at[1]) < keep_in[1]
        if inside and (low > 0 or plan.free((float(at[0]), float(at[1])), (0.05, 0.05), 0.1)):
            return camera
    assert camera is not None
    return camera
