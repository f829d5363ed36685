"""People as solids, before any picture is taken."""

import numpy as np
import pytest

from pipeline.demo.things.classes import PART_CLASS, PART_ID, PART_NAMES
from pipeline.demo.things.materials import Palette
from pipeline.demo.things.people import POSES, person
from pipeline.demo.things.shapes import reaches


def palette(seed: int) -> Palette:
    """A palette of this seed."""
    return Palette(np.random.default_rng(seed))


@pytest.mark.parametrize("activity", POSES)
def test_a_person_has_every_part_and_stands_on_the_floor(activity: str) -> None:
    made = person(palette(1), activity=activity)
    assert {PART_NAMES[shape.part - 1] for shape in made.shapes} >= set(PART_NAMES)
    lowest = min(
        shape.centre[1] - np.abs(shape.rotation[1]) @ half
        for shape, half in zip(made.shapes, reaches(made.shapes), strict=True)
    )
    assert lowest == pytest.approx(0.0, abs=1e-9)
    assert 0.5 < made.half[1] < 2.6


def test_a_sitting_person_has_the_torso_above_the_seat_and_the_knees_at_its_height() -> None:
    for seed in range(10):
        made = person(palette(seed), seat=0.45)
        torso = [shape.centre[1] for shape in made.shapes if shape.part == PART_ID["torso"]]
        thigh = [shape.centre[1] for shape in made.shapes if shape.part in (PART_ID["luleg"], PART_ID["ruleg"])]
        assert min(torso) > 0.45
        assert np.abs(np.array(thigh) - 0.53).max() < 0.15


def test_left_is_the_persons_own_left() -> None:
    made = person(palette(3), activity="stand")
    sides = {PART_NAMES[shape.part - 1]: shape.centre[0] for shape in made.shapes}
    for name in ("uarm", "uleg", "lleg", "foot"):
        assert sides[f"l{name}"] > sides[f"r{name}"]


def test_limbs_hang_together() -> None:
    made = person(palette(4), activity="run")
    ends = {}
    for shape in made.shapes:
        half = shape.rotation[:, 1] * shape.size[1] * shape.parameters[0]
        ends[PART_NAMES[shape.part - 1]] = (shape.centre - half, shape.centre + half)
    for side in "lr":
        for upper, lower in (("uarm", "larm"), ("larm", "hand"), ("uleg", "lleg")):
            gap = np.linalg.norm(ends[side + upper][1] - ends[side + lower][0])
            assert gap < 1e-9


def test_part_classes_follow_the_published_grouping() -> None:
    groups = {
        1: ("head", "hair", "lear", "rear", "leye", "reye", "nose", "mouth"),
        2: ("neck", "torso"),
        3: ("luarm", "ruarm"),
        4: ("llarm", "rlarm", "lhand", "rhand"),
        5: ("luleg", "ruleg"),
        6: ("llleg", "rlleg", "lfoot", "rfoot"),
    }
    assert {name: PART_CLASS[PART_ID[name]] for name in PART_NAMES} == {
        name: number for number, names in groups.items() for name in names
    }
