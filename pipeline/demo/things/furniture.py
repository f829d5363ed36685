"""Furniture: things that stand on a floor, facing +z."""

from pipeline.demo.things.materials import Material, Palette
from pipeline.demo.things.shapes import Shape, Thing, Vec, block, clear, limb, pillar, rod, thing, turn


def _legs(x: float, z: float, height: float, radius: float, material: Material) -> list[Shape]:
    return [pillar((a * x, height / 2, b * z), radius, height / 2, material) for a in (-1, 1) for b in (-1, 1)]


def chair(p: Palette) -> Thing:
    """A dining, panel or office chair."""
    frame, seat = (p.wood() if p.chance(0.6) else p.metal()), p.cloth()
    half, height = p.uniform(0.2, 0.26), p.uniform(0.42, 0.5)
    top = height + p.uniform(0.4, 0.55)
    shapes = [block((0, height - 0.03, 0), (half, 0.03, half), seat)]
    if p.chance(0.3):
        shapes.append(pillar((0, height / 2, 0), 0.03, height / 2, frame))
        for yaw in range(5):
            tip = turn(yaw=1.2566 * yaw)[:, 2] * half * 1.2
            shapes.append(limb((0, 0.1, 0), (float(tip[0]), 0.03, float(tip[2])), 0.025, frame))
    else:
        shapes += _legs(half - 0.03, half - 0.03, height, p.uniform(0.015, 0.03), frame)
    if p.chance(0.5):
        shapes.append(
            block((0, (height + top) / 2 + 0.05, -half + 0.02), (half, (top - height) / 2 - 0.05, 0.02), seat)
        )
        shapes += [
            rod((x, height, -half + 0.02), (x, top - 0.1, -half + 0.02), 0.02, frame) for x in (-half / 2, half / 2)
        ]
    else:
        slats = [-half + 0.02, -half / 3, half / 3, half - 0.02]
        shapes += [rod((x, height, -half + 0.02), (x, top, -half - 0.03), 0.016, frame) for x in slats]
        shapes.append(block((0, top, -half - 0.03), (half, 0.04, 0.018), frame))
    return thing("chair", shapes, seat=height)


def armchair(p: Palette) -> Thing:
    """An upholstered chair for one."""
    return _upholstered("chair", p.uniform(0.36, 0.45), p)


def sofa(p: Palette) -> Thing:
    """A sofa for two or three."""
    return _upholstered("sofa", p.uniform(0.75, 1.15), p)


def _upholstered(name: str, half: float, p: Palette) -> Thing:
    cover, feet = p.cloth(), p.wood()
    depth, seat, back, arm = p.uniform(0.38, 0.46), p.uniform(0.38, 0.45), p.uniform(0.75, 0.95), p.uniform(0.07, 0.13)
    inner = half - 2 * arm
    shapes = [
        block((0, seat / 2 + 0.02, 0), (half - 0.01, seat / 2 - 0.07, depth), cover),
        block((0, back / 2 + 0.05, -depth + 0.1), (half - arm, back / 2 - 0.06, 0.1), cover, rotation=turn(pitch=-0.1)),
        *[block((s * (half - arm), 0.36, 0), (arm, 0.28, depth), cover) for s in (-1, 1)],
        *[
            limb((s * (half - arm), 0.64, -depth + arm), (s * (half - arm), 0.64, depth - arm), arm, cover)
            for s in (-1, 1)
        ],
        *_legs(half - 0.08, depth - 0.08, 0.09, 0.025, feet),
    ]
    cushions = max(1, round(inner / 0.35))
    width = inner / cushions
    for number in range(cushions):
        x = -inner + width * (2 * number + 1)
        shapes.append(block((x, seat, 0.08), (width * 0.97, 0.06, depth - 0.1), cover))
        shapes.append(
            block((x, seat + 0.24, -depth + 0.27), (width * 0.93, 0.18, 0.05), cover, rotation=turn(pitch=-0.2))
        )
    return thing(name, shapes, seat=seat + 0.06)


def table(p: Palette) -> Thing:
    """A round or square table."""
    height, material = p.uniform(0.68, 0.78), p.wood()
    if p.chance(0.35):
        radius = p.uniform(0.4, 0.65)
        shapes = [
            pillar((0, height - 0.02, 0), radius, 0.02, material),
            pillar((0, height / 2, 0), 0.05, height / 2 - 0.02, material),
            pillar((0, 0.02, 0), radius * 0.55, 0.02, material, taper=0.3),
        ]
    else:
        x, z = p.uniform(0.5, 0.95), p.uniform(0.35, 0.5)
        shapes = [block((0, height - 0.025, 0), (x, 0.025, z), material)]
        shapes += _legs(x - 0.06, z - 0.06, height - 0.05, p.uniform(0.02, 0.045), material)
    return thing("table", shapes, top=height)


def coffee_table(p: Palette) -> Thing:
    """A low table."""
    height, x, z, material = p.uniform(0.35, 0.45), p.uniform(0.35, 0.6), p.uniform(0.25, 0.35), p.wood()
    shapes = [
        block((0, height - 0.02, 0), (x, 0.02, z), material),
        *_legs(x - 0.05, z - 0.05, height, 0.025, p.metal()),
    ]
    return thing("table", shapes, top=height)


def desk(p: Palette) -> Thing:
    """A desk with drawers on one side."""
    height, x, z, material = p.uniform(0.7, 0.78), p.uniform(0.55, 0.8), p.uniform(0.3, 0.38), p.wood()
    side = -1 if p.chance(0.5) else 1
    knob = p.metal()
    shapes = [
        block((0, height - 0.02, 0), (x, 0.02, z), material),
        block((side * (x - 0.2), height / 2, 0), (0.19, height / 2 - 0.03, z - 0.02), material),
        block((-side * (x - 0.02), height / 2, 0), (0.02, height / 2 - 0.02, z - 0.02), material),
        block((0, height / 2 + 0.1, -z + 0.02), (x - 0.02, height / 2 - 0.15, 0.01), material),
    ]
    for row in range(3):
        y = height * (0.2 + 0.28 * row)
        shapes.append(rod((side * (x - 0.26), y, z - 0.005), (side * (x - 0.14), y, z - 0.005), 0.014, knob))
    return thing("desk", shapes, top=height)


def bed(p: Palette) -> Thing:
    """A bed, its head at -z."""
    x, z, cover, wood = p.uniform(0.5, 0.9), p.uniform(0.98, 1.05), p.cloth(), p.wood()
    sheet = p.material("plain", (0.8, 0.8, 0.78), (0.7, 0.7, 0.7), 0.3)
    top = p.uniform(0.45, 0.58)
    shapes = [
        block((0, 0.2, 0), (x, 0.08, z), wood),
        block((0, (top + 0.28) / 2, 0), (x - 0.02, (top - 0.28) / 2, z - 0.02), sheet),
        block((0, top - 0.06, z * 0.3), (x, 0.09, z * 0.7), cover),
        block((0, 0.5, -z - 0.03), (x + 0.03, p.uniform(0.4, 0.55), 0.03), wood),
        *_legs(x - 0.06, z - 0.06, 0.14, 0.035, wood),
    ]
    return thing("bed", shapes, top=top, seat=top)


def pillow(p: Palette) -> Thing:
    """A soft block, lying or leaning."""
    cover = p.cloth()
    lean = turn(pitch=p.uniform(-0.2, 0.1))
    x, z = p.uniform(0.2, 0.28), p.uniform(0.14, 0.2)
    shapes = [
        block((0, 0.06, 0), (x, 0.035, z), cover, rotation=lean, taper=(0.15, 0.15)),
        limb((-x, 0.05, 0), (x, 0.05, 0), 0.06, cover),
    ]
    return thing("pillow", shapes)


def lamp(p: Palette) -> Thing:
    """A floor lamp, lit."""
    height, radius = p.uniform(1.3, 1.7), p.uniform(0.14, 0.22)
    return thing("lamp", _lamp(height, radius, p))


def table_lamp(p: Palette) -> Thing:
    """A lamp to put on something, lit."""
    return thing("lamp", _lamp(p.uniform(0.32, 0.5), p.uniform(0.09, 0.14), p))


def _lamp(height: float, radius: float, p: Palette) -> list[Shape]:
    hue = p.uniform(0.05, 0.15)
    glowing = Material("plain", (1.0, 0.8 + hue, 0.55), (1.0, 0.8, 0.5), glow=p.uniform(0.8, 1.8))
    stand = p.metal() if p.chance(0.6) else p.vivid(0.4)
    tall = radius * p.uniform(1.1, 1.6)
    shade = pillar((0, height - tall / 2, 0), radius, tall / 2, glowing, taper=p.uniform(0.2, 0.6))
    return [
        pillar((0, 0.015, 0), radius * 0.8, 0.015, stand),
        pillar((0, (height - tall) / 2, 0), max(0.012, height * 0.012), (height - tall) / 2, stand),
        clear(shade),
    ]


def television(p: Palette) -> Thing:
    """A screen on a foot, showing something."""
    x, y = p.uniform(0.3, 0.6), 0.0
    y = x * p.uniform(0.55, 0.65)
    picture = p.painting()
    screen = Material("painting", picture.first, picture.second, picture.scale, 0.3, glow=0.5, key=picture.key)
    dark = p.dark()
    shapes = [
        block((0, y + 0.09, 0), (x, y, 0.025), dark),
        block((0, y + 0.09, 0.022), (x - 0.025, y - 0.025, 0.006), screen),
        block((0, 0.06, -0.01), (0.05, 0.06, 0.015), dark),
        pillar((0, 0.01, 0), x * 0.4, 0.01, dark),
    ]
    return thing("tvmonitor", shapes)


def _cupboard(name: str, half: Vec, doors: tuple[int, int], p: Palette) -> Thing:
    """A box with a grid of fronts; `half` is half its size, `doors` columns and rows."""
    x, y, z = half
    material, knob = (p.wood() if p.chance(0.7) else p.neutral()), p.metal()
    shapes = [block((0, y, 0), (x, y, z), material)]
    columns, rows = doors
    for column in range(columns):
        for row in range(rows):
            at_x, at_y = -x + x * (2 * column + 1) / columns, y * (2 * row + 1) / rows
            panel = (x / columns - 0.012, y / rows - 0.012, 0.01)
            shapes.append(block((at_x, at_y, z + 0.008), panel, material))
            side = 1 if column % 2 == 0 and columns > 1 else 0
            shapes.append(
                limb(
                    (at_x + side * panel[0] * 0.8, at_y, z + 0.03),
                    (at_x + side * panel[0] * 0.8 + 0.04, at_y, z + 0.03),
                    0.012,
                    knob,
                )
            )
    return thing(name, shapes, top=2 * y)


def cabinet(p: Palette) -> Thing:
    """A cupboard with doors, waist high or tall."""
    tall = p.chance(0.4)
    half = (p.uniform(0.4, 0.65), p.uniform(0.85, 1.05) if tall else p.uniform(0.38, 0.48), p.uniform(0.2, 0.28))
    return _cupboard("cabinet", half, (2, 1 if tall else 2), p)


def dresser(p: Palette) -> Thing:
    """A chest of drawers."""
    return _cupboard("dresser", (p.uniform(0.35, 0.55), p.uniform(0.38, 0.55), p.uniform(0.2, 0.25)), (1, 4), p)


def nightstand(p: Palette) -> Thing:
    """A small cabinet beside a bed."""
    return _cupboard("cabinet", (p.uniform(0.2, 0.25), p.uniform(0.24, 0.3), 0.19), (1, 2), p)


def fridge(p: Palette) -> Thing:
    """A fridge with a freezer below."""
    x, y, z = p.uniform(0.28, 0.36), p.uniform(0.75, 0.95), p.uniform(0.28, 0.34)
    body, grip = (p.neutral(0.4) if p.chance(0.7) else p.vivid(0.5)), p.metal()
    split = 2 * y * p.uniform(0.3, 0.4)
    shapes = [
        block((0, y, -0.02), (x, y, z - 0.02), body),
        block((0, split / 2 + 0.02, z - 0.02), (x - 0.005, split / 2 - 0.025, 0.03), body),
        block((0, y + split / 2, z - 0.02), (x - 0.005, y - split / 2 - 0.01, 0.03), body),
        limb((-x + 0.07, split + 0.08, z + 0.04), (-x + 0.07, split + 0.5, z + 0.04), 0.015, grip),
        limb((-x + 0.07, split - 0.3, z + 0.04), (-x + 0.07, split - 0.06, z + 0.04), 0.015, grip),
    ]
    return thing("fridge", shapes)


def bookshelf(p: Palette) -> Thing:
    """Shelves full of books and gaps."""
    x, z, shelves, wood = p.uniform(0.35, 0.6), p.uniform(0.13, 0.18), int(p.uniform(3, 6)), p.wood()
    step = p.uniform(0.3, 0.36)
    height = step * shelves
    shapes = [block((s * x, height / 2, 0), (0.015, height / 2, z), wood) for s in (-1, 1)]
    shapes += [block((0, row * step + 0.012, 0), (x, 0.012, z), wood) for row in range(shelves + 1)]
    shapes.append(block((0, height / 2, -z + 0.005), (x, height / 2, 0.005), wood))
    for row in range(shelves):
        shapes += _books(x - 0.03, row * step + 0.024, step, z, p)
    return thing("bookshelf", shapes)


def _books(x: float, floor: float, step: float, z: float, p: Palette) -> list[Shape]:
    shapes, at = [], -x
    while at < x - 0.1:
        width, height = p.uniform(0.02, 0.05), step * p.uniform(0.55, 0.85)
        if p.chance(0.82):
            depth = z * p.uniform(0.7, 0.95)
            shapes.append(block((at + width, floor + height / 2, 0.0), (width, height / 2, depth), p.vivid(0.1)))
        at += 2 * width + 0.003
    return shapes
