"""Furnished rooms: four kinds, looked at from a corner, at somebody, or at one thing."""

from collections.abc import Callable

import numpy as np

from pipeline.data.demo import animals, clutter, furniture, storage, vehicles
from pipeline.data.demo.materials import Palette, tint
from pipeline.data.demo.people import person
from pipeline.data.demo.plan import Plan, Spot, portrait, seen_from, somebody
from pipeline.data.demo.rooms import Room
from pipeline.data.demo.scene import Camera, Placed, Scene
from pipeline.data.demo.shapes import Thing

Maker = Callable[[Palette], Thing]

INDOOR_SUBJECTS: dict[str, Maker] = {
    "bed": furniture.bed,
    "bookshelf": storage.bookshelf,
    "bottle": clutter.bottle,
    "cabinet": storage.cabinet,
    "chair": furniture.chair,
    "cup": clutter.cup,
    "fridge": storage.fridge,
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
    "living room": (furniture.sofa, storage.cabinet, storage.bookshelf, furniture.armchair, furniture.lamp),
    "bedroom": (furniture.bed, storage.dresser, storage.cabinet, furniture.chair, furniture.lamp),
    "study": (furniture.desk, storage.bookshelf, storage.cabinet, furniture.armchair, storage.bookshelf),
    "kitchen": (storage.fridge, storage.cabinet, storage.cabinet, storage.dresser, furniture.lamp),
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
            space.plan.put(furniture.chair(p), Plan.beside(item, (0.0, 0.55)), item.yaw + np.pi, margin=-0.1)
    if not fewer and p.chance(0.75 if kind == "kitchen" else 0.35):
        _dining(space.plan)


def _pillows(plan: Plan, item: Placed, places: tuple[float, ...], along: float) -> None:
    top = item.thing.top or item.thing.seat or 0.0
    for place in places:
        x, z = Plan.beside(item, (place * item.thing.half[0], along * item.thing.half[2]))
        plan.add(furniture.pillow(plan.palette), (x, item.position[1] + top, z), item.yaw)


def _make_bed(plan: Plan, bed: Placed) -> None:
    """Pillows at its head, nightstands beside it."""
    x, _, z = bed.thing.half
    _pillows(plan, bed, (-0.4, 0.4), -0.8)
    for side in (-1, 1):
        if plan.palette.chance(0.6):
            stand = storage.nightstand(plan.palette)
            at = Plan.beside(bed, (side * (x + stand.half[0] + 0.06), stand.half[2] - z + 0.04))
            plan.put(stand, at, bed.yaw, margin=0.0)


def _dining(plan: Plan) -> None:
    p = plan.palette
    item = plan.scatter(furniture.table(p), ((-0.8, 0.8), (-0.8, 0.8)), p.uniform(-0.3, 0.3))
    if item is None:
        return
    x, _, z = item.thing.half
    for side, (at_x, at_z) in enumerate(((0.0, z + 0.25), (x + 0.25, 0.0), (0.0, -z - 0.25), (-x - 0.25, 0.0))):
        if p.chance(0.7):
            yaw = item.yaw + np.pi + side * np.pi / 2 + p.uniform(-0.2, 0.2)
            plan.put(furniture.chair(p), Plan.beside(item, (at_x, at_z)), yaw, margin=-0.15)


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
