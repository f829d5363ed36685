"""Vehicles, lengthwise along z, front at +z."""

from pipeline.demo.things.materials import Material, Palette
from pipeline.demo.things.shapes import Shape, Thing, ball, block, limb, pillar, rod, scaled, thing, turn

GLASS = Material("plain", (0.03, 0.045, 0.06), (0.05, 0.07, 0.09), 0.5, gloss=0.9)
LIT = Material("plain", (0.9, 0.85, 0.7), (0.9, 0.85, 0.7), gloss=0.6, glow=0.4)
STOP = Material("plain", (0.5, 0.02, 0.02), (0.5, 0.02, 0.02), gloss=0.6)


def _wheel(x: float, z: float, radius: float, p: Palette, half: float = 0.1) -> list[Shape]:
    hub = p.metal()
    side = 1 if x > 0 else -1
    return [
        rod((x - half, radius, z), (x + half, radius, z), radius, p.dark()),
        rod((x, radius, z), (x + side * (half + 0.01), radius, z), radius * 0.6, hub),
    ]


def car(p: Palette) -> Thing:
    """A saloon, hatchback or van."""
    paint = p.vivid(0.7) if p.chance(0.7) else p.neutral(0.7)
    half, x, wheel = p.uniform(1.75, 2.2), p.uniform(0.78, 0.88), p.uniform(0.29, 0.34)
    roof, waist = p.uniform(1.35, 1.6), p.uniform(0.82, 0.92)
    cabin_half = half * p.uniform(0.5, 0.72)
    back = -half + cabin_half + p.uniform(0.05, 0.25)
    tall = (roof - waist) / 2
    slope = (0.28, p.uniform(0.3, 0.5))
    shapes = [
        block((0, 0.47, 0), (x, 0.22, half), paint, taper=(0.02, 0.03)),
        block((0, (0.69 + waist) / 2, 0), (x - 0.02, (waist - 0.69) / 2, half - 0.04), paint, taper=(0.1, 0.08)),
        block((0, waist + tall, back), (x - 0.06, tall, cabin_half), paint, taper=slope),
        block((0, waist + tall * 0.95, back), (x - 0.1, tall * 0.8, cabin_half * 1.015), GLASS, taper=slope),
        block((0, waist + tall * 0.95, back), (x - 0.04, tall * 0.78, cabin_half * 0.86), GLASS, taper=slope),
        block((0, 0.36, 0), (x + 0.01, 0.06, half + 0.03), p.dark()),
    ]
    for side in (-1, 1):
        shapes += [ball((side * (x - 0.2), 0.62, half - 0.02), (0.14, 0.07, 0.06), LIT)]
        shapes += [ball((side * (x - 0.15), 0.64, -half + 0.02), (0.12, 0.07, 0.05), STOP)]
        for z in (half * 0.62, -half * 0.62):
            shapes += _wheel(side * (x - 0.09), z, wheel, p)
    return thing("car", shapes)


def bus(p: Palette) -> Thing:
    """A city bus with a row of windows."""
    return _coach("bus", p.uniform(3.6, 5.0), p.uniform(2.8, 3.2), p, wheels=True)


def train(p: Palette) -> Thing:
    """A railway carriage on its rails."""
    return _coach("train", p.uniform(5.0, 7.5), p.uniform(3.3, 3.8), p, wheels=False)


def _coach(name: str, half: float, top: float, p: Palette, *, wheels: bool) -> Thing:
    paint, trim, x = p.vivid(0.5), p.neutral(0.4), 1.25
    floor = 0.45
    shapes = [
        block((0, (floor + top) / 2, 0), (x, (top - floor) / 2, half), paint),
        block((0, top + 0.06, 0), (x, 0.08, half), trim, taper=(0.3, 0.06)),
        block((0, floor + 0.25, 0), (x + 0.01, 0.12, half + 0.01), trim),
        block((0, top - 0.75, half), (x - 0.12, 0.45, 0.02), GLASS),
    ]
    panes = round(half / 0.8)
    width = half / panes
    for number in range(panes):
        z = -half + width * (2 * number + 1)
        shapes.append(block((0, top - 0.8, z), (x + 0.015, 0.4, width * 0.82), GLASS))
    for side in (-1, 1):
        shapes.append(ball((side * 0.9, floor + 0.45, half), (0.14, 0.12, 0.05), LIT))
        for z in (half * 0.7, -half * 0.65):
            if wheels:
                shapes += _wheel(side * (x - 0.1), z, 0.48, p, 0.13)
            else:
                shapes += [q for near in (-0.5, 0.5) for q in _wheel(side * 0.8, z + near, 0.4, p)]
        if not wheels:
            shapes.append(block((side * 0.8, 0.03, 0), (0.05, 0.06, half + 4.0), p.metal()))
    return thing(name, shapes)


def bicycle(p: Palette) -> Thing:
    """A bicycle on its stand."""
    paint, rubber, radius = p.vivid(0.5), p.dark(), p.uniform(0.31, 0.35)
    front, rear = 0.52, -0.52
    shapes: list[Shape] = []
    for z in (front, rear):
        shapes.append(rod((-0.022, radius, z), (0.022, radius, z), radius, rubber, hole=0.88))
        shapes.append(rod((-0.04, radius, z), (0.04, radius, z), 0.03, p.metal()))
        for spoke in range(4):
            arm = turn(pitch=0.785 * spoke)[:, 1] * radius * 0.9
            a, b = float(arm[1]), float(arm[2])
            shapes.append(rod((0, radius - a, z - b), (0, radius + a, z + b), 0.004, p.metal()))
    saddle, bar, crank = (0.0, 0.82, -0.22), (0.0, 0.88, 0.36), (0.0, 0.28, -0.05)
    hubs = ((0.0, radius, rear), (0.0, radius, front))
    pairs = ((hubs[0], crank), (hubs[0], saddle), (saddle, crank), (crank, (0, 0.72, 0.4)), (saddle, (0, 0.78, 0.38)))
    shapes += [limb(a, b, 0.02, paint) for a, b in (*pairs, (hubs[1], bar))]
    shapes += [
        limb((-0.25, 0.98, 0.33), (0.25, 0.98, 0.33), 0.015, rubber),
        limb(bar, (0, 0.98, 0.34), 0.016, p.metal()),
        ball((0, 0.87, -0.24), (0.07, 0.035, 0.13), rubber),
        rod((-0.02, 0.28, -0.05), (0.02, 0.28, -0.05), 0.09, p.metal()),
    ]
    return thing("bicycle", shapes)


def motorbike(p: Palette) -> Thing:
    """A motorbike."""
    paint, rubber, metal, radius = p.vivid(0.8), p.dark(), p.metal(), 0.31
    shapes: list[Shape] = []
    for z in (0.7, -0.65):
        shapes.append(rod((-0.07, radius, z), (0.07, radius, z), radius, rubber, hole=0.62))
        shapes.append(rod((-0.05, radius, z), (0.05, radius, z), radius * 0.66, metal, hole=0.75))
        shapes.append(rod((-0.02, radius, z), (0.02, radius, z), 0.09, metal))
    shapes += [
        block((0, 0.45, 0), (0.15, 0.17, 0.3), metal, taper=(0.3, 0.1)),
        ball((0, 0.78, 0.16), (0.15, 0.14, 0.3), paint),
        ball((0, 0.76, -0.35), (0.14, 0.07, 0.36), rubber),
        ball((0, 0.7, -0.72), (0.1, 0.1, 0.2), paint),
        ball((0, 0.92, 0.5), (0.13, 0.13, 0.1), LIT),
        limb((-0.34, 1.05, 0.32), (0.34, 1.05, 0.32), 0.018, rubber),
        limb((0.17, 0.32, -0.1), (0.17, 0.4, -0.8), 0.05, metal),
        *[limb((s * 0.1, radius, 0.7), (s * 0.1, 1.03, 0.36), 0.025, metal) for s in (-1, 1)],
        *[limb((s * 0.1, radius, -0.65), (s * 0.08, 0.5, -0.1), 0.03, metal) for s in (-1, 1)],
    ]
    return thing("motorbike", shapes)


def aeroplane(p: Palette) -> Thing:
    """A light aeroplane, parked."""
    paint, trim = p.neutral(0.6), p.vivid(0.6)
    half, y, span = p.uniform(2.6, 3.4), 1.25, p.uniform(3.6, 4.8)
    wing = y + (0.5 if p.chance(0.5) else -0.3)
    shapes = [
        ball((0, y, 0.2), (0.55, 0.6, half * 0.72), paint),
        rod((0, y, 0), (0, y + 0.25, -half), 0.5, paint, taper=0.75),
        ball((0, y + 0.35, half * 0.25), (0.4, 0.36, 0.75), GLASS),
        block((0, wing, half * 0.2), (span, 0.07, 0.55), trim, taper=(0.02, 0.2)),
        block((0, y + 0.25, -half + 0.2), (1.3, 0.04, 0.32), trim),
        block((0, y + 0.85, -half + 0.15), (0.05, 0.62, 0.36), trim, taper=(0.0, 0.45)),
        rod((0, y, half * 0.8), (0, y, half * 0.95), 0.2, trim, taper=0.8),
        block((0, y, half * 0.93), (0.9, 0.06, 0.02), p.dark(), rotation=turn(roll=p.uniform(0, 3))),
    ]
    for x, z in ((-0.8, 0.3), (0.8, 0.3), (0.0, half * 0.6)):
        shapes.append(limb((x, 0.2, z), (x * 0.5, y - 0.3, z), 0.04, p.metal()))
        shapes.append(rod((x - 0.07, 0.2, z), (x + 0.07, 0.2, z), 0.2, p.dark()))
    return thing("aeroplane", shapes)


def boat(p: Palette) -> Thing:
    """A small boat with a cabin or a mast, drawn up on the land."""
    hull, deck, half = p.vivid(0.4), p.wood(), p.uniform(1.6, 2.6)
    shapes = [
        scaled(rod((0, 0.62, 0), (0, 0.08, 0), 1.0, hull, taper=0.45), (0.55, 1.0, half)),
        scaled(pillar((0, 0.63, 0), 0.93, 0.02, deck), (0.55, 1.0, half)),
    ]
    if p.chance(0.5):
        cabin = [block((0, 0.95, -0.2), (0.36, 0.32, half * 0.36), p.neutral(0.3), taper=(0.15, 0.2))]
        cabin.append(block((0, 1.0, -0.2), (0.34, 0.14, half * 0.37), GLASS, taper=(0.05, 0.06)))
    else:
        top = p.uniform(2.6, 3.6)
        cabin = [rod((0, 0.6, 0.2), (0, top, 0.2), 0.04, p.wood())]
        cabin.append(
            block((0, (0.95 + top) / 2, -half * 0.3), (0.012, (top - 0.95) / 2, half * 0.42), p.cloth(), taper=(0, 0.9))
        )
        cabin.append(limb((0, 0.92, 0.2), (0, 0.92, -half * 0.75), 0.03, p.wood()))
    return thing("boat", [*shapes, *cabin])
