"""Streets, parks and fields under a sun and a sky."""

from collections.abc import Callable

import numpy as np

from pipeline.demo.scenes.floor_plan import FloorPlan, portrait, seen_from, somebody
from pipeline.demo.scenes.scene import Light, Scene, Sky
from pipeline.demo.things import animals, clutter, furniture, nature, vehicles
from pipeline.demo.things.materials import Material, Palette, dimmed, shade, tint
from pipeline.demo.things.people import person
from pipeline.demo.things.shapes import Thing, block, plane, thing

Maker = Callable[[Palette], Thing]


def _animal(name: str) -> Maker:
    return lambda p: animals.animal(name, p)


OUTDOOR_SUBJECTS: dict[str, Maker] = {
    "aeroplane": vehicles.aeroplane,
    "ball": clutter.toy_ball,
    "bench": nature.bench,
    "bicycle": vehicles.bicycle,
    "bird": animals.bird,
    "boat": vehicles.boat,
    "bus": vehicles.bus,
    "car": vehicles.car,
    "cat": _animal("cat"),
    "cow": _animal("cow"),
    "dog": _animal("dog"),
    "horse": _animal("horse"),
    "motorbike": vehicles.motorbike,
    "person": person,
    "sheep": _animal("sheep"),
    "train": vehicles.train,
    "tree": nature.tree,
}

TRAFFIC = (vehicles.car, vehicles.car, vehicles.car, vehicles.bus, vehicles.motorbike, vehicles.bicycle)
GRAZING = tuple(_animal(name) for name in ("sheep", "sheep", "cow", "horse", "dog"))
PARKED = (vehicles.aeroplane, vehicles.boat, vehicles.train, vehicles.motorbike, vehicles.car)
LOOSE: tuple[Maker, ...] = (
    nature.bush,
    nature.bush,
    nature.rock,
    nature.bench,
    nature.sign,
    clutter.bag,
    clutter.toy_ball,
    clutter.carton,
    animals.bird,
    animals.bird,
    _animal("dog"),
    _animal("cat"),
    clutter.pottedplant,
    vehicles.bicycle,
    furniture.chair,
)


def weather(p: Palette) -> tuple[tuple[Light, ...], Sky]:
    """Sun and sky: clear, cloudy, overcast or late in the day."""
    low_sun, overcast = p.chance(0.25), p.chance(0.25)
    height, around = p.uniform(0.2, 0.45) if low_sun else p.uniform(0.5, 1.25), p.uniform(-np.pi, np.pi)
    sun = (float(np.cos(height) * np.sin(around)), float(np.sin(height)), float(np.cos(height) * np.cos(around)))
    strength = 0.35 if overcast else p.uniform(1.1, 1.9)
    colour = (1.0, 0.72, 0.45) if low_sun else (1.0, 0.95, 0.86)
    grey = p.uniform(0.5, 0.8)
    blue = (grey, grey * 1.02, grey * 1.05) if overcast else tint(p.uniform(0.55, 0.62), p.uniform(0.35, 0.7), 0.95)
    pale = tint(0.07, 0.35, 0.97) if low_sun else tint(0.58, 0.12, 0.97)
    ambient = (0.5 * blue[0] + 0.3, 0.5 * blue[1] + 0.3, 0.5 * blue[2] + 0.3)
    clouds = 0.0 if p.chance(0.2) else p.uniform(0.35, 0.75)
    sky = Sky(ambient, (0.22, 0.2, 0.16), pale, blue, clouds, p.uniform(0.0005, 0.004), p.uniform(0, 99))
    fill = Light((-sun[0], 0.5, -sun[2]), (0.08, 0.09, 0.11), sun=True, shadow=False)
    return (Light(sun, dimmed(colour, strength), sun=True), fill), sky


def _ground(p: Palette) -> tuple[str, Material]:
    if p.chance(0.7):
        green = tint(p.uniform(0.19, 0.29), p.uniform(0.35, 0.6), p.uniform(0.4, 0.62))
        return "grass", p.material("speckle", green, shade(green, 0.45), p.uniform(0.12, 0.3))
    sand = tint(p.uniform(0.07, 0.13), p.uniform(0.15, 0.45), p.uniform(0.5, 0.8))
    return "ground", p.material("speckle", sand, shade(sand, 0.6), p.uniform(0.08, 0.2))


def _landscape(plan: FloorPlan, back: float) -> None:
    """Ground, and what closes the view behind `back`: hills, houses, rows of trees."""
    p = plan.palette
    name, soil = _ground(p)
    plan.add(thing(name, [plane((0, 0, 0), (0, 1, 0), soil)]), (0, 0, 0))
    for number in range(int(p.uniform(1, 4))):
        plan.add(nature.hill(p, p.uniform(40, 80)), (p.uniform(-90, 90), -2.0, -110.0 - 15 * number))
    at = -30.0
    while at < 30.0:
        if p.chance(0.35):
            plan.add(nature.tree(p), (at + p.uniform(0, 3), 0.0, back - p.uniform(4, 14)), p.uniform(-3, 3))
        at += p.uniform(2.5, 6.0)


def _street(plan: FloorPlan, back: float) -> None:
    """Road with markings, pavements, and a row of houses behind `back`."""
    p = plan.palette
    grey = tint(0.6, 0.03, p.uniform(0.3, 0.5))
    asphalt = p.material("speckle", grey, shade(grey, 0.6), 0.06)
    paving = p.material("tiles", tint(0.1, 0.06, 0.7), tint(0.1, 0.06, 0.45), p.uniform(0.3, 0.6))
    paint = Material("plain", (0.75, 0.75, 0.7), (0.75, 0.75, 0.7))
    marks = [block((x, 0.012, -2.0), (0.9, 0.004, 0.07), paint) for x in range(-28, 29, 4)]
    plan.add(thing("road", [block((0, 0.005, -2.0), (80, 0.008, 3.0), asphalt), *marks]), (0, 0, 0))
    kerbs = [block((0, 0.03, z), (80, 0.06, half), paving) for z, half in ((2.2, 1.1), (-6.1, 1.1))]
    plan.add(thing("ground", kerbs), (0, 0, 0))
    at = -26.0
    while at < 24.0:
        house = nature.house(p)
        at += house.half[0]
        if p.chance(0.85):
            plan.add(house, (at, 0.0, back - 1.0 - house.half[2]))
        at += house.half[0] + p.uniform(0.3, 3.0)
    for x in (-12.0, -4.0, 4.0, 12.0):
        if p.chance(0.6):
            maker = nature.street_lamp if p.chance(0.5) else nature.tree
            plan.put(maker(p), (x + p.uniform(-1, 1), -6.0), 0.0)


def _traffic(plan: FloorPlan) -> None:
    p = plan.palette
    for lane, yaw in ((-3.4, np.pi / 2), (-0.7, -np.pi / 2)):
        for _ in range(int(p.uniform(0, 3))):
            maker = TRAFFIC[int(p.rng.integers(len(TRAFFIC)))]
            plan.scatter(maker(p), ((-9.0, 9.0), (lane, lane)), yaw + p.uniform(-0.05, 0.05))


def outdoors(p: Palette, *, people: int, subject: str | None = None) -> Scene:
    """A street, park or field; with `subject` (of OUTDOOR_SUBJECTS) one that is seen from before that thing."""
    kind = p.pick(("street", "park", "field"))
    plan = FloorPlan(p, (60.0, 60.0))
    back = -8.0 if kind == "street" else p.uniform(-16.0, -9.0)
    lights, sky = weather(p)
    main = None
    if subject:
        main = plan.put(OUTDOOR_SUBJECTS[subject](p), (0.0, p.uniform(-2.5, -1.5)), p.uniform(-0.9, 0.9))
    _landscape(plan, back)
    near = ((-4.5, 4.5), (-6.5, 3.0))
    if kind == "street":
        _street(plan, back)
        _traffic(plan)
        near = ((-4.5, 4.5), (1.0, 3.2) if p.chance(0.5) else (-7.0, 3.0))
    else:
        _park(plan, kind, back)
    plan.people(people, near)
    for maker in p.rng.permutation(len(LOOSE))[: int(p.uniform(3, 8))]:
        plan.scatter(LOOSE[int(maker)](p), near)
    person = somebody(plan)
    if main is not None:
        camera = portrait(p, main, plan, plan.half, (0.42, 0.75))
    elif person is not None:
        camera = portrait(p, person, plan, plan.half, (0.15, 0.5))
    else:
        at = (p.uniform(-4, 4), p.uniform(1.0, 2.6), p.uniform(5.0, 8.0))
        camera = seen_from(p, at, (p.uniform(-2.0, 2.0), p.uniform(0.3, 1.3), -2.0), (0.75, 1.25))
    return Scene(kind, tuple(plan.placed), lights, sky, camera, subject or "")


def _park(plan: FloorPlan, kind: str, back: float) -> None:
    p = plan.palette
    if p.chance(0.5):
        half = p.uniform(8, 20)
        plan.add(nature.fence(p, half), (p.uniform(-6, 6), 0.0, back))
    if p.chance(0.4):
        gravel = p.material("speckle", tint(0.1, 0.2, 0.7), tint(0.1, 0.2, 0.5), 0.08)
        plan.add(
            thing("ground", [block((0, 0.004, 0), (40, 0.008, 0.8), gravel)]),
            (0, 0, p.uniform(-3, 1)),
            p.uniform(-0.6, 0.6),
        )
    chosen: tuple[Maker, ...] = GRAZING if kind == "field" else PARKED
    for _ in range(int(p.uniform(1, 4))):
        plan.scatter(chosen[int(p.rng.integers(len(chosen)))](p), ((-6.0, 6.0), (-9.0, 0.0)))
    for _ in range(int(p.uniform(0, 4))):
        plan.scatter(nature.tree(p), ((-9.0, 9.0), (-9.0, -1.0)))
