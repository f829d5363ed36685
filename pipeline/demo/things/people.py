"""Simple articulated people: a pose is a set of joint angles, a body a set of lengths, a person both and clothes."""

from dataclasses import dataclass

import numpy as np

from pipeline.demo.things.classes import PART_ID
from pipeline.demo.things.materials import Material, Palette, tint
from pipeline.demo.things.shapes import Array, Shape, Thing, Vec, ball, limb, moved, reaches, thing, turn

POSES = ("stand", "walk", "run", "wave", "reach", "cheer", "hips", "crouch", "bow")
"""What a person may be doing on their feet."""


@dataclass
class Pose:
    """Joint angles in radians, (left, right) where there are two; forward, outward and bent are positive."""

    lean: float = 0.05
    sway: float = 0.0
    twist: float = 0.0
    nod: float = 0.0
    look: float = 0.0
    arm: tuple[float, float] = (0.05, 0.05)
    spread: tuple[float, float] = (0.15, 0.15)
    elbow: tuple[float, float] = (0.25, 0.25)
    hip: tuple[float, float] = (0.05, -0.05)
    straddle: tuple[float, float] = (0.08, 0.08)
    knee: tuple[float, float] = (0.05, 0.1)


def pose(activity: str, p: Palette) -> Pose:
    """The named pose (one of POSES, or `sit`), loosely taken."""
    stride = p.uniform(0.3, 0.6) * (1 if p.chance(0.5) else -1)
    table = {
        "stand": Pose(),
        "walk": Pose(arm=(-stride, stride), hip=(stride, -stride), knee=(0.15, 0.35), elbow=(0.4, 0.4)),
        "run": Pose(
            lean=0.25, arm=(-1.6 * stride, 1.6 * stride), hip=(2 * stride, -stride), knee=(0.9, 1.1), elbow=(1.5, 1.5)
        ),
        "wave": Pose(arm=(0.1, 0.3), spread=(0.15, 2.3), elbow=(0.2, 0.7)),
        "reach": Pose(lean=0.15, arm=(1.4, 1.2), elbow=(0.2, 0.3)),
        "cheer": Pose(arm=(0.2, 0.2), spread=(2.5, 2.5), elbow=(0.3, 0.3), nod=-0.2),
        "hips": Pose(arm=(-0.5, -0.5), spread=(0.75, 0.75), elbow=(1.3, 1.3)),
        "crouch": Pose(lean=0.5, hip=(1.7, 1.5), knee=(2.2, 2.1), arm=(1.0, 1.0), elbow=(0.5, 0.5)),
        "bow": Pose(lean=0.9, arm=(0.9, 0.8), nod=0.3, hip=(0.2, 0.1), knee=(0.3, 0.3)),
        "sit": Pose(lean=-0.08, hip=(1.45, 1.45), knee=(1.45, 1.4), arm=(0.6, 0.6), elbow=(0.8, 0.8)),
    }
    return _loosened(table[activity], p)


def _loosened(pose: Pose, p: Palette) -> Pose:
    def two(pair: tuple[float, float], by: float) -> tuple[float, float]:
        left, right = pair if p.chance(0.5) else pair[::-1]
        return left + p.uniform(-by, by), right + p.uniform(-by, by)

    return Pose(
        lean=pose.lean + p.uniform(-0.08, 0.1),
        sway=p.uniform(-0.08, 0.08),
        twist=p.uniform(-0.25, 0.25),
        nod=pose.nod + p.uniform(-0.2, 0.3),
        look=p.uniform(-0.7, 0.7),
        arm=two(pose.arm, 0.2),
        spread=two(pose.spread, 0.12),
        elbow=two(pose.elbow, 0.25),
        hip=two(pose.hip, 0.1),
        straddle=two(pose.straddle, 0.06),
        knee=two(pose.knee, 0.08),
    )


@dataclass(frozen=True)
class Outfit:
    """Materials of a person, and whether hair is long."""

    skin: Material
    hair: Material
    shirt: Material
    trousers: Material
    shoes: Material
    sleeve: Material
    shin: Material
    long_hair: bool


def outfit(p: Palette) -> Outfit:
    """Skin, hair and clothes at random."""
    tone = tint(p.uniform(0.045, 0.08), p.uniform(0.3, 0.6), p.uniform(0.4, 0.95))
    skin = Material("plain", tone, tone, gloss=0.05)
    strand = tint(p.uniform(0.03, 0.12), p.uniform(0.1, 0.7), p.uniform(0.08, 0.75))
    hair = p.material("grain", strand, (strand[0] / 2, strand[1] / 2, strand[2] / 2), 0.02)
    shirt, trousers = p.cloth(), (p.cloth() if p.chance(0.3) else _denim(p))
    sleeve = shirt if p.chance(0.5) else skin
    shin = trousers if p.chance(0.75) else skin
    return Outfit(skin, hair, shirt, trousers, p.neutral(0.2), sleeve, shin, p.chance(0.4))


def _denim(p: Palette) -> Material:
    colour = tint(p.uniform(0.55, 0.68), p.uniform(0.1, 0.6), p.uniform(0.12, 0.6))
    return p.material("mottle", colour, colour, 0.1)


def person(p: Palette, *, activity: str | None = None, seat: float | None = None) -> Thing:
    """A person who faces +z, feet on the floor; with `seat`, sitting at that height (metres).

    Shapes carry their part of PART_NAMES; left is the person's own left (+x).
    """
    height = p.uniform(1.5, 1.92) if p.chance(0.85) else p.uniform(1.05, 1.4)
    girth = p.uniform(0.85, 1.2)
    doing = "sit" if seat is not None else activity or p.pick(POSES)
    body = _Body(height, girth, pose(doing, p), outfit(p))
    shapes = [*body.trunk(), *body.head(), *body.arms(), *body.legs()]
    down = [float(np.abs(shape.rotation[1]) @ half) for shape, half in zip(shapes, reaches(shapes), strict=True)]
    soles = min(float(shape.centre[1]) - below for shape, below in zip(shapes, down, strict=True))
    lift = -soles if seat is None else seat + 0.055 * height * girth
    return thing("person", [moved(shape, (0.0, lift, 0.0)) for shape in shapes])


class _Body:
    """A body with its hips at the origin; lengths are shares of its height."""

    def __init__(self, height: float, girth: float, pose: Pose, outfit: Outfit) -> None:
        self.h, self.g, self.pose, self.wears = height, girth, pose, outfit
        self.upper = turn(yaw=pose.twist) @ turn(pitch=pose.lean, roll=pose.sway)

    def at(self, x: float, y: float, z: float) -> Vec:
        """A point of the upper body, in shares of the height, after lean and twist."""
        point = self.upper @ (self.h * np.array([x, y, z]))
        return float(point[0]), float(point[1]), float(point[2])

    def trunk(self) -> list[Shape]:
        """Torso with shoulders and pelvis, and neck."""
        h, g, wears, torso = self.h, self.g, self.wears, PART_ID["torso"]
        wide, deep = 0.095 * h * g, 0.062 * h * g
        spine = self.upper
        return [
            ball(self.at(0, 0.17, 0), (wide, 0.16 * h, deep), wears.shirt, rotation=spine, part=torso),
            ball(self.at(0, 0.07, 0), (wide * 0.92, 0.11 * h, deep * 1.02), wears.shirt, rotation=spine, part=torso),
            limb(self.at(-0.075, 0.275, 0), self.at(0.075, 0.275, 0), 0.042 * h * g, wears.shirt, part=torso),
            ball((0, 0.005 * h, 0), (wide * 0.98, 0.065 * h, deep * 1.08), wears.trousers, part=torso),
            limb(self.at(0, 0.29, 0), self.at(0, 0.36, 0.012), 0.03 * h, wears.skin, part=PART_ID["neck"]),
        ]

    def head(self) -> list[Shape]:
        """Head with face, ears and hair."""
        h, wears, pose = self.h, self.wears, self.pose
        frame = self.upper @ turn(yaw=pose.look, pitch=pose.nod)
        base = np.array(self.at(0, 0.355, 0.012))

        def spot(x: float, y: float, z: float) -> Vec:
            point = base + frame @ (h * np.array([x, y, z]))
            return float(point[0]), float(point[1]), float(point[2])

        eye = Material("plain", (0.02, 0.015, 0.01), (0.02, 0.015, 0.01), gloss=0.6)
        lips = Material("plain", (0.35, 0.08, 0.07), (0.35, 0.08, 0.07))
        shapes = [
            ball(
                spot(0, 0.06, 0.008),
                (0.046 * h, 0.068 * h, 0.055 * h),
                wears.skin,
                rotation=frame,
                part=PART_ID["head"],
            ),
            ball(
                spot(0, 0.077, -0.008),
                (0.051 * h, 0.06 * h, 0.056 * h),
                wears.hair,
                rotation=frame,
                part=PART_ID["hair"],
            ),
            ball(
                spot(0, 0.05, 0.064), (0.007 * h, 0.012 * h, 0.01 * h), wears.skin, rotation=frame, part=PART_ID["nose"]
            ),
            ball(spot(0, 0.025, 0.055), (0.016 * h, 0.005 * h, 0.006 * h), lips, rotation=frame, part=PART_ID["mouth"]),
        ]
        for side, eyes, ears in ((1, "leye", "lear"), (-1, "reye", "rear")):
            shapes.append(ball(spot(side * 0.018, 0.064, 0.054), 0.0075 * h, eye, part=PART_ID[eyes]))
            shapes.append(
                ball(
                    spot(side * 0.049, 0.055, 0.008),
                    (0.006 * h, 0.016 * h, 0.01 * h),
                    wears.skin,
                    rotation=frame,
                    part=PART_ID[ears],
                )
            )
        if wears.long_hair:
            shapes.append(
                ball(
                    spot(0, 0.03, -0.035),
                    (0.048 * h, 0.08 * h, 0.03 * h),
                    wears.hair,
                    rotation=frame,
                    part=PART_ID["hair"],
                )
            )
        return shapes

    def arms(self) -> list[Shape]:
        """Upper arms, lower arms and hands."""
        h, g, wears, pose, shapes = self.h, self.g, self.wears, self.pose, []
        for side, letter in ((1, "l"), (-1, "r")):
            which = 0 if side == 1 else 1
            shoulder = np.array(self.at(side * 0.105, 0.28, 0))
            raised, out, bend = pose.arm[which], pose.spread[which], pose.elbow[which]
            elbow = shoulder + 0.165 * h * (self.upper @ _hanging(side, raised, out))
            wrist = elbow + 0.145 * h * (self.upper @ _hanging(side, raised + bend, out * (1.0 if out > 1.5 else 0.35)))
            hand = wrist + 0.35 * (wrist - elbow) / 1.0 * 0.75
            upper, lower, palm = (PART_ID[letter + name] for name in ("uarm", "larm", "hand"))
            shapes += [
                limb(_vec(shoulder), _vec(elbow), 0.03 * h * g, wears.shirt, part=upper),
                limb(_vec(elbow), _vec(wrist), 0.0235 * h * g, wears.sleeve, part=lower),
                limb(_vec(wrist), _vec((wrist + hand) / 2), 0.024 * h, wears.skin, part=palm),
            ]
        return shapes

    def legs(self) -> list[Shape]:
        """Upper legs, lower legs and feet."""
        h, g, wears, pose, shapes = self.h, self.g, self.wears, self.pose, []
        for side, letter in ((1, "l"), (-1, "r")):
            which = 0 if side == 1 else 1
            hip = h * np.array([side * 0.052, -0.01, 0.0])
            raised, out, bend = pose.hip[which], pose.straddle[which], pose.knee[which]
            knee = hip + 0.24 * h * _hanging(side, raised, out)
            ankle = knee + 0.225 * h * _hanging(side, raised - bend, out * 0.6)
            toes = ankle + h * np.array([side * 0.012, -0.02, 0.085])
            upper, lower, foot = (PART_ID[letter + name] for name in ("uleg", "lleg", "foot"))
            shapes += [
                limb(_vec(hip), _vec(knee), 0.046 * h * g, wears.trousers, part=upper),
                limb(_vec(knee), _vec(ankle), 0.034 * h * g, wears.shin, part=lower),
                limb(_vec(ankle + h * np.array([0, -0.02, -0.01])), _vec(toes), 0.026 * h, wears.shoes, part=foot),
            ]
        return shapes


def _hanging(side: int, forward: float, out: float) -> Array:
    """A unit direction: straight down, swung forward, then lifted outward."""
    direction: Array = np.array([side * np.sin(out), -np.cos(out) * np.cos(forward), np.cos(out) * np.sin(forward)])
    return direction / np.linalg.norm(direction)


def _vec(array: Array) -> Vec:
    return float(array[0]), float(array[1]), float(array[2])
