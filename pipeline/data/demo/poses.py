"""Poses: joint angles, by what a person is doing."""

from dataclasses import dataclass

from pipeline.data.demo.materials import Palette

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
