"""What stands outdoors: trees, rocks, buildings, fences, poles, benches, hills."""

from pipeline.demo.things.materials import Material, Palette, tint
from pipeline.demo.things.shapes import Shape, Thing, ball, block, limb, pillar, rod, thing, turn


def tree(p: Palette) -> Thing:
    """A broadleaved tree or a conifer."""
    height = p.uniform(3.0, 7.0)
    bark = p.material("mottle", tint(0.07, 0.45, 0.35), tint(0.07, 0.4, 0.15), 0.12)
    autumn = p.uniform(0.04, 0.14) if p.chance(0.2) else None
    leaf = p.leaf(autumn)
    wide = Material(leaf.pattern, leaf.first, leaf.second, 0.22, key=leaf.key)
    trunk = height * p.uniform(0.25, 0.4)
    radius = height * p.uniform(0.02, 0.035)
    shapes = [pillar((0, trunk * 0.75, 0), radius, trunk * 0.75, bark, taper=0.4)]
    if p.chance(0.3):
        tiers = int(p.uniform(3, 6))
        for tier in range(tiers):
            low = trunk * 0.5 + (height - trunk * 0.5) * tier / tiers
            tall = (height - trunk * 0.5) / tiers * 0.9
            shapes.append(pillar((0, low + tall, 0), height * 0.24 * (1 - 0.75 * tier / tiers), tall, wide, taper=0.95))
    else:
        spread = height * p.uniform(0.17, 0.24)
        for _ in range(int(p.uniform(6, 12))):
            lean = turn(yaw=p.uniform(0, 6.28), pitch=p.uniform(0.1, 1.2))[:, 1] * spread * p.uniform(0.5, 1.2)
            centre = (float(lean[0]), trunk + spread * 0.7 + 1.5 * float(lean[1]), float(lean[2]))
            shapes.append(ball(centre, spread * p.uniform(0.5, 0.85), wide))
    return thing("tree", shapes)


def bush(p: Palette) -> Thing:
    """A bush, sometimes in flower."""
    leaf, size = p.leaf(), p.uniform(0.3, 0.8)
    shapes = []
    for _ in range(int(p.uniform(4, 8))):
        radius = size * p.uniform(0.35, 0.6)
        shapes.append(
            ball((size * p.uniform(-0.7, 0.7), radius * p.uniform(0.6, 1.0), size * p.uniform(-0.5, 0.5)), radius, leaf)
        )
    return thing("bush", shapes)


def rock(p: Palette) -> Thing:
    """A few boulders together."""
    stone, size = p.stone(), p.uniform(0.2, 0.6)
    shapes = []
    for _ in range(int(p.uniform(1, 4))):
        radii = (size * p.uniform(0.6, 1.1), size * p.uniform(0.4, 0.8), size * p.uniform(0.6, 1.1))
        centre = (size * p.uniform(-0.8, 0.8), radii[1] * 0.5, size * p.uniform(-0.8, 0.8))
        shapes.append(ball(centre, radii, stone, rotation=turn(yaw=p.uniform(0, 3), roll=p.uniform(-0.4, 0.4))))
    return thing("rock", shapes)


def house(p: Palette) -> Thing:
    """A house with a gable roof, or a block of flats."""
    x, z = p.uniform(3.0, 6.0), p.uniform(3.0, 5.0)
    storeys = int(p.uniform(1, 3)) if p.chance(0.6) else int(p.uniform(3, 7))
    y = 1.5 * storeys
    hue = p.uniform(0.02, 0.15)
    plaster = tint(hue, p.uniform(0.05, 0.5), p.uniform(0.55, 0.95))
    front = p.material("facade", plaster, (0.05, 0.07, 0.1), p.uniform(1.8, 2.6), 0.1)
    shapes = [block((0, y, 0), (x, y, z), front), block((0, 1.0, z + 0.02), (0.5, 1.05, 0.03), p.wood())]
    if storeys < 3:
        roof = p.material("bricks", tint(p.uniform(0, 0.06), 0.6, 0.5), tint(0.03, 0.4, 0.25), 0.5)
        tall = p.uniform(0.8, 1.4)
        shapes.append(block((0, 2 * y + tall, 0), (x + 0.4, tall, z + 0.4), roof, taper=(0.0, 1.0)))
        shapes.append(
            block(
                (x * 0.5, 2 * y + 1.7 * tall, 0.4),
                (0.25, 0.8, 0.25),
                p.material("bricks", tint(0.02, 0.6, 0.5), (0.6, 0.6, 0.55), 0.25),
            )
        )
    else:
        shapes.append(block((0, 2 * y + 0.15, 0), (x + 0.1, 0.15, z + 0.1), p.stone()))
    return thing("building", shapes)


def fence(p: Palette, half: float) -> Thing:
    """A fence of pickets, bars or a hedge-like wall, along x."""
    wood = p.wood() if p.chance(0.5) else p.neutral()
    height = p.uniform(0.8, 1.3)
    shapes: list[Shape] = [block((0, y, -0.04), (half, 0.04, 0.02), wood) for y in (height * 0.3, height * 0.75)]
    step = p.uniform(0.22, 0.5)
    posts = int(2 * half / step)
    shapes += [block((-half + step * (i + 0.5), height / 2, 0), (0.05, height / 2, 0.015), wood) for i in range(posts)]
    return thing("fence", shapes)


def street_lamp(p: Palette) -> Thing:
    """A street lamp with one arm."""
    height, metal = p.uniform(3.2, 4.6), p.dark()
    shapes = [
        pillar((0, height / 2, 0), 0.06, height / 2, metal, taper=0.4),
        pillar((0, 0.15, 0), 0.12, 0.15, metal),
        limb((0, height, 0), (0, height + 0.15, 0.8), 0.035, metal),
        ball((0, height + 0.1, 0.9), (0.12, 0.07, 0.24), p.neutral(0.5)),
    ]
    return thing("pole", shapes)


def sign(p: Palette) -> Thing:
    """A road sign."""
    height, board = p.uniform(2.0, 2.6), p.vivid(0.4)
    shapes = [pillar((0, height / 2, 0), 0.035, height / 2, p.metal())]
    if p.chance(0.5):
        shapes.append(rod((0, height - 0.1, 0.03), (0, height - 0.1, 0.06), 0.3, board))
        shapes.append(rod((0, height - 0.1, 0.05), (0, height - 0.1, 0.065), 0.22, p.neutral(0.3)))
    else:
        shapes.append(block((0, height - 0.1, 0.045), (0.35, 0.25, 0.015), board))
        shapes.append(block((0, height - 0.1, 0.055), (0.28, 0.06, 0.012), p.neutral(0.3)))
    return thing("pole", shapes)


def bench(p: Palette) -> Thing:
    """A park bench."""
    half, wood, metal = p.uniform(0.65, 0.95), p.wood(), p.dark()
    shapes = [block((0, 0.44, z), (half, 0.02, 0.06), wood) for z in (-0.14, 0.0, 0.14)]
    shapes += [block((0, y, -0.24), (half, 0.055, 0.015), wood, rotation=turn(pitch=-0.15)) for y in (0.62, 0.78)]
    for side in (-1, 1):
        x = side * (half - 0.12)
        shapes.append(block((x, 0.21, 0), (0.03, 0.21, 0.18), metal, taper=(0, 0.2)))
        shapes.append(rod((x, 0.42, -0.2), (x, 0.86, -0.28), 0.025, metal))
    return thing("bench", shapes, seat=0.46)


def hill(p: Palette, half: float) -> Thing:
    """A wooded or rocky hill far away, `half` wide."""
    green = p.chance(0.7)
    ground = p.leaf() if green else p.stone()
    wide = Material("mottle", ground.first, ground.second, 6.0, key=ground.key)
    shapes = []
    for _ in range(3):
        radii = (half * p.uniform(0.5, 0.9), half * p.uniform(0.12, 0.32), half * p.uniform(0.3, 0.5))
        shapes.append(ball((half * p.uniform(-0.6, 0.6), 0, half * p.uniform(-0.2, 0.2)), radii, wide))
    return thing("hill", shapes)
