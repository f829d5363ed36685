"""Small things, on tables and floors, and what hangs on walls."""

from pipeline.demo.things.materials import Material, Palette, tint
from pipeline.demo.things.shapes import Shape, Thing, Vec, ball, block, clear, limb, pillar, rod, thing, turn


def bottle(p: Palette) -> Thing:
    """A bottle with a label and a cap."""
    colour = tint(p.uniform(0.0, 0.45), p.uniform(0.5, 0.9), p.uniform(0.25, 0.7))
    glass = p.material("plain", colour, colour, 0.2, 0.8)
    radius, body = p.uniform(0.035, 0.05), p.uniform(0.14, 0.2)
    neck = radius * p.uniform(0.3, 0.45)
    shoulder = p.uniform(0.05, 0.08)
    top = body + shoulder + p.uniform(0.05, 0.08)
    shapes = [
        pillar((0, body / 2, 0), radius, body / 2, glass),
        pillar((0, body + shoulder / 2, 0), radius, shoulder / 2, glass, taper=1 - neck / radius),
        pillar((0, (body + top) / 2, 0), neck, (top - body) / 2, glass),
        pillar((0, top, 0), neck * 1.2, 0.012, p.vivid(0.4)),
        pillar((0, body * 0.5, 0), radius * 1.02, body * 0.25, p.material("stripes", (0.8, 0.8, 0.75), colour, 0.06)),
    ]
    return thing("bottle", shapes)


def cup(p: Palette) -> Thing:
    """A mug with a handle, or a bowl."""
    radius, height, glaze = p.uniform(0.035, 0.05), p.uniform(0.08, 0.11), p.vivid(0.5)
    shapes = [
        rod((0, 0, 0), (0, height, 0), radius, glaze, hole=0.85),
        pillar(
            (0, height * 0.35, 0),
            radius * 0.86,
            height * 0.34,
            Material("plain", (0.1, 0.05, 0.02), (0.1, 0.05, 0.02), gloss=0.4),
        ),
        rod((radius * 1.2, height / 2, -0.006), (radius * 1.2, height / 2, 0.006), height * 0.32, glaze, hole=0.7),
    ]
    return thing("cup", shapes)


def toy_ball(p: Palette) -> Thing:
    """A ball, football to beach ball."""
    radius = p.uniform(0.1, 0.22)
    skin = p.vivid(0.4)
    other = p.vivid(0.4)
    pattern = p.pick(("stripes", "checker", "dots", "plain"))
    painted = Material(pattern, skin.first, other.first, radius * p.uniform(0.6, 1.1), 0.4, key=p.uniform(0, 100))
    return thing(
        "ball", [ball((0, radius, 0), radius, painted, rotation=turn(pitch=p.uniform(0, 3), roll=p.uniform(0, 3)))]
    )


def carton(p: Palette) -> Thing:
    """A cardboard box with tape, or a wrapped one."""
    x, y, z = p.uniform(0.1, 0.28), p.uniform(0.08, 0.25), p.uniform(0.1, 0.25)
    card = p.material("mottle", tint(0.08, 0.5, 0.7), tint(0.08, 0.5, 0.6), 0.2) if p.chance(0.6) else p.vivid()
    tape = p.neutral(0.2)
    shapes = [block((0, y, 0), (x, y, z), card), block((0, y, 0), (x * 0.12, y + 0.002, z + 0.002), tape)]
    return thing("box", shapes, top=2 * y)


def books(p: Palette) -> Thing:
    """A pile of books."""
    shapes, height = [], 0.0
    for _ in range(int(p.uniform(1, 5))):
        half = p.uniform(0.01, 0.025)
        turned = turn(yaw=p.uniform(-0.4, 0.4))
        size = (p.uniform(0.08, 0.11), half, p.uniform(0.11, 0.15))
        shapes.append(block((0, height + half, 0), size, p.vivid(0.1), rotation=turned))
        height += 2 * half
    return thing("book", shapes, top=height)


def bag(p: Palette) -> Thing:
    """A bag with two handles."""
    x, y, z, cloth = p.uniform(0.14, 0.24), p.uniform(0.12, 0.2), p.uniform(0.07, 0.12), p.cloth()
    shapes: list[Shape] = [block((0, y, 0), (x, y, z), cloth, taper=(0.15, 0.6))]
    for side in (-1, 1):
        grip = (side * x * 0.45, 2 * y - 0.02, 0.0)
        shapes.append(limb(grip, (side * x * 0.25, 2 * y + 0.12, 0.0), 0.012, p.dark()))
    shapes.append(limb((-x * 0.25, 2 * y + 0.12, 0), (x * 0.25, 2 * y + 0.12, 0), 0.012, p.dark()))
    return thing("bag", shapes)


def pottedplant(p: Palette) -> Thing:
    """A pot with leaves or a bush in it."""
    scale = p.uniform(0.7, 1.5)
    radius, height = 0.14 * scale, 0.24 * scale
    pot = p.vivid(0.2) if p.chance(0.5) else p.material("mottle", tint(0.04, 0.7, 0.65), tint(0.04, 0.7, 0.5), 0.1)
    shapes = [
        rod((0, height, 0), (0, 0, 0), radius, pot, taper=0.35),
        pillar((0, height, 0), radius * 0.9, 0.006, Material("mottle", (0.05, 0.03, 0.02), (0.1, 0.07, 0.05), 0.02)),
    ]
    return thing("pottedplant", shapes + (_blades(height, scale, p) if p.chance(0.5) else _crown(height, scale, p)))


def _blades(height: float, scale: float, p: Palette) -> list[Shape]:
    leaf, shapes = p.leaf(), []
    for number in range(int(p.uniform(8, 14))):
        length = scale * p.uniform(0.25, 0.45)
        lean = turn(yaw=2.4 * number) @ turn(pitch=p.uniform(0.15, 1.1))
        middle = lean[:, 1] * length * 0.5
        centre = (float(middle[0]), height + float(middle[1]), float(middle[2]))
        shapes.append(ball(centre, (0.035 * scale, length / 2, 0.008), leaf, rotation=lean))
    return shapes


def _crown(height: float, scale: float, p: Palette) -> list[Shape]:
    leaf, shapes = p.leaf(), [limb((0, height, 0), (0, height + 0.3 * scale, 0), 0.012 * scale, p.wood())]
    for _ in range(int(p.uniform(4, 8))):
        centre = (
            scale * p.uniform(-0.13, 0.13),
            height + scale * p.uniform(0.18, 0.45),
            scale * p.uniform(-0.13, 0.13),
        )
        shapes.append(ball(centre, scale * p.uniform(0.08, 0.15), leaf))
    return shapes


def picture(p: Palette) -> Thing:
    """A framed picture; its back lies in the plane z = 0, its middle at the origin."""
    x, y, frame = p.uniform(0.2, 0.5), p.uniform(0.2, 0.4), (p.wood() if p.chance(0.6) else p.dark())
    shapes = [
        block((0, 0, 0.012), (x, y, 0.012), frame),
        block((0, 0, 0.02), (x - 0.03, y - 0.03, 0.008), p.painting()),
    ]
    return thing("picture", shapes)


def window(half: tuple[float, float], p: Palette, *, sky: Vec) -> Thing:
    """A window in a wall, like `picture`; glass shows `sky` and lets light pass."""
    x, y = half
    frame = p.neutral(0.2)
    glass = Material("mottle", sky, (0.75, 0.85, 0.95), 0.8, 0.5, glow=2.2, key=p.uniform(0, 100))
    pane = block((0, 0, 0.01), (x, y, 0.01), glass)
    bars = [
        block((0, 0, 0.02), (0.02, y, 0.02), frame),
        block((0, 0, 0.02), (x, 0.02, 0.02), frame),
        *[block((0, s * y, 0.025), (x + 0.04, 0.035, 0.03), frame) for s in (-1, 1)],
        *[block((s * x, 0, 0.025), (0.035, y, 0.03), frame) for s in (-1, 1)],
    ]
    return thing("window", [clear(shape) for shape in (pane, *bars)])


def curtain(half: tuple[float, float], p: Palette) -> Thing:
    """Two gathered curtains beside a window of this size, like `picture`."""
    x, y = half
    cloth, folds = p.cloth(), []
    width = p.uniform(0.12, 0.2)
    for side in (-1, 1):
        for fold in range(4):
            at = side * (x + 0.02 + width * (fold - 1) / 2)
            folds.append(rod((at, -y - 0.25, 0.08), (at, y + 0.15, 0.08), width * 0.3, cloth))
    folds.append(rod((-x - 0.35, y + 0.16, 0.08), (x + 0.35, y + 0.16, 0.08), 0.015, p.metal()))
    return thing("curtain", folds)


def door(p: Palette) -> Thing:
    """A door in a wall: its back in the plane z = 0, standing on the floor."""
    leaf = p.wood() if p.chance(0.6) else p.neutral(0.2)
    frame = p.neutral(0.1)
    panels = [
        block((s * 0.19, y, 0.03), (0.14, h, 0.01), leaf) for s in (-1, 1) for y, h in ((0.55, 0.38), (1.5, 0.42))
    ]
    shapes = [
        block((0, 1.02, 0.01), (0.42, 1.02, 0.02), leaf),
        *panels,
        *[block((s * 0.46, 1.04, 0.02), (0.045, 1.06, 0.03), frame) for s in (-1, 1)],
        block((0, 2.1, 0.02), (0.5, 0.045, 0.03), frame),
        ball((0.34, 1.0, 0.06), 0.03, p.metal()),
    ]
    return thing("door", shapes)


def rug(p: Palette) -> Thing:
    """A patterned rug, flat on the floor."""
    cloth, edge = p.cloth(), p.cloth()
    wide = Material(cloth.pattern, cloth.first, cloth.second, p.uniform(0.15, 0.4), key=cloth.key)
    if p.chance(0.3):
        radius = p.uniform(0.6, 1.0)
        return thing(
            "rug", [pillar((0, 0.006, 0), radius, 0.006, edge), pillar((0, 0.008, 0), radius - 0.1, 0.006, wide)]
        )
    x, z = p.uniform(0.6, 1.2), p.uniform(0.5, 0.9)
    return thing(
        "rug", [block((0, 0.006, 0), (x, 0.006, z), edge), block((0, 0.008, 0), (x - 0.1, 0.006, z - 0.1), wide)]
    )
