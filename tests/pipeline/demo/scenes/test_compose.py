"""Scenes show what was asked for."""

import numpy as np
import pytest

from pipeline.demo.scenes.compose import render_scene
from pipeline.demo.things.classes import CLASS_ID, PERSON, SUBJECTS


def test_most_pictures_of_a_subject_show_it_large() -> None:
    shares = []
    for number, subject in enumerate(SUBJECTS):
        scene = render_scene(1, 32, stream="imagenet", index=number, subject=subject)
        assert scene.subject == subject
        shares.append(float((scene.semantic == CLASS_ID[subject]).mean()))
    assert np.mean(np.array(shares) > 0.04) > 0.9
    assert np.median(shares) > 0.12


def test_rooms_have_no_sky_and_outdoors_no_ceiling() -> None:
    for index in range(4):
        assert not (render_scene(2, 24, index=index, setting="indoors").semantic == 0).any()
        assert not (render_scene(2, 24, index=index, setting="outdoors").semantic == CLASS_ID["ceiling"]).any()


def test_most_pascal_scenes_show_a_person() -> None:
    shown = [(render_scene(0, 32, stream="pascal-context", index=i).semantic == PERSON).any() for i in range(16)]
    assert np.mean(shown) > 0.6


@pytest.mark.slow
def test_scenes_are_varied_over_many_seeds() -> None:
    seen: set[int] = set()
    for index in range(80):
        seen |= set(np.unique(render_scene(9, 32, index=index).semantic).tolist())
    assert len(seen) >= 45
