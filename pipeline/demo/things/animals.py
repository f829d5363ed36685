"""Animals: four-legged ones from one plan with different measures, and a bird; they face +z."""

from dataclasses import dataclass

from pipeline.demo.things.materials import Material, Palette, tint
from pipeline.demo.things.shapes import Shape, Thing, Vec, ball, block, limb, rod, scaled, thing, turn

EYE = Material("plain", (0.01, 0.01, 0.01), (0.01, 0.01, 0.01), gloss=0.7)


@dataclass(frozen=True)
class Build:
    """Measures of a four-legged animal in metres; `coat` is hue, saturation and value."""

    shoulder: float
    half_length: float
    girth: float
    leg: float
    neck: float
    head: float
    muzzle: float
    ear: float
    tail: float
    coats: tuple[Vec, ...]
    horns: bool = False
    wool: bool = False
    mane: bool = False


BUILDS = {
    "dog": Build(
        0.5, 0.3, 0.12, 0.035, 0.2, 0.085, 0.1, 0.06, 0.25, ((0.08, 0.6, 0.6), (0.07, 0.3, 0.25), (0.1, 0.2, 0.85))
    ),
    "cat": Build(
        0.26, 0.18, 0.075, 0.022, 0.09, 0.06, 0.03, 0.035, 0.26, ((0.07, 0.7, 0.7), (0.0, 0.0, 0.2), (0.1, 0.1, 0.8))
    ),
    "sheep": Build(0.66, 0.4, 0.24, 0.04, 0.2, 0.1, 0.1, 0.06, 0.08, ((0.1, 0.1, 0.85), (0.1, 0.15, 0.7)), wool=True),
    "cow": Build(
        1.2,
        0.75,
        0.34,
        0.075,
        0.42,
        0.17,
        0.2,
        0.1,
        0.6,
        ((0.05, 0.6, 0.4), (0.0, 0.0, 0.9), (0.08, 0.4, 0.6)),
        horns=True,
    ),
    "horse": Build(
        1.35,
        0.75,
        0.29,
        0.065,
        0.75,
        0.15,
        0.26,
        0.08,
        0.65,
        ((0.05, 0.7, 0.4), (0.0, 0.0, 0.2), (0.1, 0.15, 0.85)),
        mane=True,
    ),
}


def animal(name: str, p: Palette) -> Thing:
    """The animal of this name (a key of BUILDS), standing or walking."""
    build = BUILDS[name]
    coat = p.fur(*build.coats[int(p.uniform(0, len(build.coats)))])
    scale = p.uniform(0.85, 1.15)
    shapes = [*_body(build, coat, p), *_legs(build, coat, p), *_head(build, coat, p)]
    return thing(name, [scaled(shape, (scale, scale, scale)) for shape in shapes])


def _body(b: Build, coat: Material, p: Palette) -> list[Shape]:
    y = b.shoulder - b.girth * 0.9
    shapes = [
        limb((0, y, -b.half_length + b.girth), (0, y, b.half_length - b.girth), b.girth, coat),
        ball((0, y, b.half_length * 0.55), (b.girth * 0.95, b.girth * 1.15, b.girth * 1.2), coat),
        ball((0, y + b.girth * 0.05, -b.half_length * 0.6), (b.girth * 1.02, b.girth * 1.08, b.girth * 1.1), coat),
    ]
    if b.wool:
        for _ in range(14):
            at = (
                p.uniform(-0.6, 0.6) * b.girth,
                y + p.uniform(0.1, 0.75) * b.girth,
                p.uniform(-0.9, 0.85) * b.half_length,
            )
            shapes.append(ball(at, b.girth * p.uniform(0.45, 0.65), coat))
    droop = p.uniform(-0.5, 0.9) if b.shoulder < 0.6 else -0.9
    rump = (0.0, y + b.girth * 0.5, -b.half_length * 0.95)
    tip = (p.uniform(-0.2, 0.2) * b.tail, rump[1] + droop * b.tail, rump[2] - b.tail * (1 - abs(droop) * 0.7))
    shapes.append(limb(rump, tip, b.leg * (0.9 if b.mane else 0.6), coat))
    return shapes


def _legs(b: Build, coat: Material, p: Palette) -> list[Shape]:
    dark = p.dark() if p.chance(0.4) else coat
    hip, shapes = b.shoulder - b.girth * 1.2, []
    for z in (b.half_length * 0.68, -b.half_length * 0.7):
        for side in (-1, 1):
            stride = p.uniform(-0.16, 0.16) * hip
            knee = (side * b.girth * 0.58, hip * 0.5, z + stride * 0.6)
            shapes.append(limb((side * b.girth * 0.55, hip + 0.3 * b.girth, z), knee, b.leg * 1.35, coat))
            shapes.append(limb(knee, (side * b.girth * 0.58, b.leg * 0.8, z + stride), b.leg * 0.8, dark))
    return shapes


def _head(b: Build, coat: Material, p: Palette) -> list[Shape]:
    rise, look = p.uniform(0.35, 1.1), p.uniform(-0.6, 0.6)
    start = (0.0, b.shoulder - b.girth * 0.5, b.half_length * 0.75)
    along = turn(yaw=look, pitch=1.57 - rise)[:, 1] * b.neck
    top = (float(along[0]), start[1] + float(along[1]), start[2] + float(along[2]))
    shapes = [limb(start, top, b.head * 0.72, coat), ball(top, (b.head * 0.85, b.head, b.head * 1.1), coat)]
    frame = turn(yaw=look, pitch=p.uniform(0.1, 0.5))

    def spot(x: float, y: float, z: float) -> Vec:
        at = frame @ [x, y, z]
        return top[0] + float(at[0]), top[1] + float(at[1]), top[2] + float(at[2])

    nose = p.material("plain", tint(0.03, 0.3, 0.25), tint(0.03, 0.3, 0.2), 0.1)
    shapes.append(limb(top, spot(0, -b.head * 0.2, b.head + b.muzzle * 0.7), b.head * 0.55, coat))
    shapes.append(ball(spot(0, -b.head * 0.15, b.head * 1.45 + b.muzzle * 0.72), b.head * 0.22, nose))
    for side in (-1, 1):
        shapes.append(ball(spot(side * b.head * 0.62, b.head * 0.35, b.head * 0.75), b.head * 0.17, EYE))
        ear = (
            spot(side * b.head * 0.6, b.head * 0.6, -b.head * 0.1),
            spot(side * b.head * 0.95, b.head * 0.7 + b.ear, -b.head * 0.1),
        )
        shapes.append(rod(*ear, b.ear * 0.5, coat, taper=0.85))
        if b.horns:
            shapes.append(
                limb(
                    spot(side * b.head * 0.5, b.head * 0.8, 0),
                    spot(side * b.head * 1.1, b.head * 1.7, 0),
                    0.025,
                    p.stone(),
                )
            )
    if b.mane:
        shapes.append(limb(start, (top[0], top[1] + b.head * 0.8, top[2] - b.head * 0.5), b.head * 0.4, nose))
    return shapes


def bird(p: Palette) -> Thing:
    """A bird on the ground, pigeon to parrot."""
    scale, feathers, wing = p.uniform(0.7, 1.8), p.vivid(0.1), p.vivid(0.1)
    beak = p.material("plain", tint(p.uniform(0.05, 0.13), 0.8, 0.8), tint(0.1, 0.8, 0.7), 0.1)
    lean = turn(pitch=p.uniform(0.5, 1.0))
    s = scale * 0.1
    top = (0.0, 2.55 * s, 0.95 * s)
    shapes = [
        ball((0, 1.5 * s, 0), (0.62 * s, 1.15 * s, 0.68 * s), feathers, rotation=lean),
        ball(top, 0.46 * s, feathers),
        limb((0, 2.0 * s, 0.5 * s), top, 0.36 * s, feathers),
        rod((0, 2.5 * s, 1.3 * s), (0, 2.42 * s, 1.85 * s), 0.14 * s, beak, taper=0.9),
        block((0, 0.95 * s, -1.35 * s), (0.3 * s, 0.07 * s, 0.75 * s), wing, rotation=turn(pitch=-0.35)),
    ]
    for side in (-1, 1):
        shapes.append(ball((side * 0.52 * s, 1.55 * s, -0.15 * s), (0.16 * s, 1.05 * s, 0.5 * s), wing, rotation=lean))
        shapes.append(ball((side * 0.36 * s, 2.65 * s, 1.15 * s), 0.09 * s, EYE))
        shapes.append(limb((side * 0.25 * s, 0.05 * s, 0.15 * s), (side * 0.25 * s, 0.8 * s, 0), 0.06 * s, beak))
        shapes.append(limb((side * 0.25 * s, 0.05 * s, 0.1 * s), (side * 0.3 * s, 0.05 * s, 0.55 * s), 0.06 * s, beak))
    return thing("bird", shapes)
