"""Furnished rooms: four kinds, looked at from a corner, at somebody, or at one thing."""

from collections.abc import Callable

import numpy as np

from pipeline.demo.scenes.floor_plan import FloorPlan, Spot, portrait, seen_from, somebody
from pipeline.demo.scenes.scene import Camera, Light, Placed, Scene, Sky
from pipeline.demo.things import animals, clutter, furniture, vehicles
from pipeline.demo.things.materials import Colour, Material, Palette, dimmed, shade, tint
from pipeline.demo.things.people import person
from pipeline.demo.things.shapes import Thing, Vec, block, plane, thing

FACING = {"back": 0.0, "front": np.pi, "left": np.pi / 2, "right": -np.pi / 2}
"""Walls of a room, and the yaw of what stands against them."""


class Room:
    """A room under construction: its measures, its floor plan, and the windows it has got so far."""

    def __init__(self, p: Palette) -> None:
        self.p = p
        self.half: Spot = (p.uniform(1.9, 3.1), p.uniform(1.8, 2.8))
        self.height = p.uniform(2.4, 3.0)
        self.plan = FloorPlan(p, self.half)
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
            direction = (float(sun[0]), float(sun[1]), float(sun[2]))
            lights.append(Light(direction, dimmed((1.0, 0.9, 0.7), p.uniform(1.5, 3.0)), True, np.array(self.openings)))
        for item in [item for item in self.plan.placed if item.thing.name == "lamp"][:2]:
            at = (item.position[0], item.position[1] + item.thing.half[1] - 0.08, item.position[2])
            lights.append(Light(at, dimmed((1.0, 0.75, 0.45), p.uniform(0.2, 0.6))))
        ambient = p.uniform(0.25, 0.5)
        above = dimmed((0.95, 0.97, 1.0), ambient)
        return tuple(lights), Sky(above, dimmed(warm, ambient * 0.7))


Maker = Callable[[Palette], Thing]

INDOOR_SUBJECTS: dict[str, Maker] = {
    "bed": furniture.bed,
    "bookshelf": furniture.bookshelf,
    "bottle": clutter.bottle,
    "cabinet": furniture.cabinet,
    "chair": furniture.chair,
    "cup": clutter.cup,
    "fridge": furniture.fridge,
    "lamp": furniture.lamp,
    "pottedplant": clutter.pottedplant,
    "sofa": furniture.sofa,
    "table": furniture.table,
    "tvmonitor": furniture.television,
    "ball": clutter.toy_ball,
    "cat": lambda p: animals.animal("cat", p),
    "dog": lambda p: animals.animal("dog", p),
    "person": person,
}

ON_A_TABLE = ("bottle", "cup", "tvmonitor")

KINDS: dict[str, tuple[Maker, ...]] = {
    "living room": (furniture.sofa, furniture.cabinet, furniture.bookshelf, furniture.armchair, furniture.lamp),
    "bedroom": (furniture.bed, furniture.dresser, furniture.cabinet, furniture.chair, furniture.lamp),
    "study": (furniture.desk, furniture.bookshelf, furniture.cabinet, furniture.armchair, furniture.bookshelf),
    "kitchen": (furniture.fridge, furniture.cabinet, furniture.cabinet, furniture.dresser, furniture.lamp),
}
"""What stands along the walls of each kind of room, the most telling first."""

LOOSE: tuple[Maker, ...] = (
    clutter.toy_ball,
    clutter.bag,
    clutter.carton,
    clutter.carton,
    clutter.books,
    clutter.pottedplant,
    clutter.pottedplant,
    furniture.chair,
    furniture.armchair,
    furniture.lamp,
    furniture.coffee_table,
    vehicles.bicycle,
    INDOOR_SUBJECTS["cat"],
    INDOOR_SUBJECTS["dog"],
)
"""What may stand or lie about on a floor."""


def room(p: Palette, *, people: int, subject: str | None = None) -> Scene:
    """A furnished room; with `subject` (of INDOOR_SUBJECTS) one that is seen from before that thing."""
    space = Room(p)
    kind = p.pick(tuple(KINDS))
    main = _place_subject(space, subject) if subject else None
    space.dress_walls(tint(p.uniform(0.52, 0.62), p.uniform(0.1, 0.5), 0.95))
    _furnish(space, kind, fewer=main is not None)
    space.plan.people(people)
    for maker in p.rng.permutation(len(LOOSE))[: int(p.uniform(2, 6))]:
        space.plan.scatter(LOOSE[int(maker)](p))
    space.plan.furnish_tops(0.55)
    lights, sky = space.lights()
    camera = _overview(space) if main is None else portrait(p, main, space.plan, _inside(space), (0.42, 0.75))
    return Scene(kind, tuple(space.plan.placed), lights, sky, camera, subject or "")


def _inside(space: Room) -> Spot:
    return space.half[0] - 0.12, space.half[1] - 0.12


def _place_subject(space: Room, subject: str) -> Placed:
    p, what = space.p, INDOOR_SUBJECTS[subject](space.p)
    if subject in ON_A_TABLE:
        table = space.plan.put(furniture.table(p), (0.0, 0.0), p.uniform(-0.5, 0.5))
        assert table is not None
        return space.plan.on_top(what, table, (p.uniform(-0.15, 0.15), p.uniform(-0.1, 0.1)))
    if what.half[0] > 0.3 and subject != "person":
        item = space.line(what, ("back",))
    else:
        item = space.plan.put(what, (p.uniform(-0.4, 0.4), p.uniform(-0.6, 0.2)), p.uniform(-0.5, 0.5))
    item = item or space.plan.add(what, (0.0, 0.0, 0.0))
    if subject == "bed":
        _make_bed(space.plan, item)
    return item


def _furnish(space: Room, kind: str, *, fewer: bool) -> None:
    p = space.p
    if p.chance(0.5):
        space.plan.add(clutter.rug(p), (p.uniform(-0.4, 0.4), 0.0, p.uniform(-0.4, 0.4)), p.uniform(-0.2, 0.2))
    along = KINDS[kind][: 3 if fewer else 5]
    for maker in along:
        item = space.line(maker(p))
        if item is not None and item.thing.name == "bed":
            _make_bed(space.plan, item)
        if item is not None and item.thing.name == "sofa" and p.chance(0.6):
            _pillows(space.plan, item, (0.55,), 0.0)
        if item is not None and item.thing.name == "desk":
            space.plan.on_top(furniture.television(p), item, (0.0, -0.1))
            space.plan.put(furniture.chair(p), FloorPlan.beside(item, (0.0, 0.55)), item.yaw + np.pi, margin=-0.1)
    if not fewer and p.chance(0.75 if kind == "kitchen" else 0.35):
        _dining(space.plan)


def _pillows(plan: FloorPlan, item: Placed, along_x: tuple[float, ...], along_z: float) -> None:
    top = item.thing.top or item.thing.seat or 0.0
    for share in along_x:
        x, z = FloorPlan.beside(item, (share * item.thing.half[0], along_z * item.thing.half[2]))
        plan.add(furniture.pillow(plan.palette), (x, item.position[1] + top, z), item.yaw)


def _make_bed(plan: FloorPlan, bed: Placed) -> None:
    """Pillows at its head, nightstands beside it."""
    x, _, z = bed.thing.half
    _pillows(plan, bed, (-0.4, 0.4), -0.8)
    for side in (-1, 1):
        if plan.palette.chance(0.6):
            stand = furniture.nightstand(plan.palette)
            at = FloorPlan.beside(bed, (side * (x + stand.half[0] + 0.06), stand.half[2] - z + 0.04))
            plan.put(stand, at, bed.yaw, margin=0.0)


def _dining(plan: FloorPlan) -> None:
    p = plan.palette
    item = plan.scatter(furniture.table(p), ((-0.8, 0.8), (-0.8, 0.8)), p.uniform(-0.3, 0.3))
    if item is None:
        return
    x, _, z = item.thing.half
    for side, (at_x, at_z) in enumerate(((0.0, z + 0.25), (x + 0.25, 0.0), (0.0, -z - 0.25), (-x - 0.25, 0.0))):
        if p.chance(0.7):
            yaw = item.yaw + np.pi + side * np.pi / 2 + p.uniform(-0.2, 0.2)
            plan.put(furniture.chair(p), FloorPlan.beside(item, (at_x, at_z)), yaw, margin=-0.15)


def _overview(space: Room) -> Camera:
    """At somebody; or from a corner, at heights from a child's to a shelf's, towards the far half of the room."""
    p, (x, z) = space.p, space.half
    person = somebody(space.plan)
    if person is not None:
        return portrait(p, person, space.plan, _inside(space), (0.22, 0.55))
    at = (0.0, 1.5, z - 0.3)
    for _ in range(16):
        side, end = (1 if p.chance(0.5) else -1), (1 if p.chance(0.5) else -1)
        spot = (side * (x - p.uniform(0.15, 0.6)), end * (z - p.uniform(0.15, 0.6)))
        if space.plan.free(spot, (0.05, 0.05), 0.25):
            at = (spot[0], p.uniform(0.9, 2.1), spot[1])
            break
    target = (-at[0] * p.uniform(0.1, 0.8), p.uniform(0.4, 1.1), -at[2] * p.uniform(0.1, 0.8))
    return seen_from(p, at, target, (0.62, 1.0))
