"""Labels against each other: what one of them says must follow from the others."""

import numpy as np
import pytest
from scipy.ndimage import label

from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.scenes.compose import render_scene
from pipeline.demo.things.classes import CLASS_ID, CLASSES, PART_CLASS, PERSON
from sak.errors import UsageError


def points(scene: RenderedScene) -> np.ndarray:
    """Where each pixel's surface point lies (metres; x right, y up, z to the viewer), from depth alone."""
    height, width = scene.depth.shape
    x = (np.arange(width) + 0.5 - width / 2) / scene.focal
    y = (height / 2 - np.arange(height) - 0.5) / scene.focal
    rays = np.stack([*np.broadcast_arrays(x[None, :], y[:, None]), np.full((height, width), -1.0)], axis=2)
    return rays * scene.depth[:, :, None].astype(np.float64)


def from_depth(scene: RenderedScene) -> np.ndarray:
    """Unit normals from the depth map's gradient, at all but the outermost pixels."""
    p = points(scene)
    across, down = p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1]
    normals = np.cross(down, across)
    return normals / np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)


def flat(scene: RenderedScene) -> np.ndarray:
    """Pixels, without the outermost, whose four neighbours lie on the same thing and in the same plane."""
    inner = scene.normals[1:-1, 1:-1]
    same = scene.depth[1:-1, 1:-1] > 0
    p = points(scene)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        window = (slice(rows, rows + inner.shape[0]), slice(columns, columns + inner.shape[1]))
        same &= scene.instances[window] == scene.instances[1:-1, 1:-1]
        same &= (scene.normals[window] * inner).sum(axis=2) > 1 - 1e-6
        offset = ((p[window] - p[1:-1, 1:-1]) * inner).sum(axis=2)
        same &= np.abs(offset) < 2e-4 * scene.depth[1:-1, 1:-1]
    return same


def test_normals_agree_with_the_gradient_of_the_depth_map(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        measured, where = from_depth(scene), flat(scene)
        assert where.mean() > 0.25
        cosine = np.clip((measured * scene.normals[1:-1, 1:-1]).sum(axis=2)[where], -1, 1)
        assert np.degrees(np.arccos(cosine)).max() < 2.0


def test_on_curved_surfaces_normals_agree_with_depth_but_for_the_curvature(scenes: list[RenderedScene]) -> None:
    errors = []
    for scene in scenes:
        inside = scene.semantic[1:-1, 1:-1] == PERSON
        for rows in range(3):
            for columns in range(3):
                height, width = inside.shape
                window = (slice(rows, rows + height), slice(columns, columns + width))
                inside &= scene.part_names[window] == scene.part_names[1:-1, 1:-1]
        cosine = (from_depth(scene) * scene.normals[1:-1, 1:-1]).sum(axis=2)[inside]
        errors.extend(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    assert len(errors) > 50
    assert np.median(errors) < 8


def test_normals_are_unit_and_face_the_viewer_wherever_there_is_depth(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        seen = scene.depth > 0
        np.testing.assert_allclose(np.linalg.norm(scene.normals[seen], axis=1), 1.0, atol=1e-5)
        assert ((scene.normals * points(scene)).sum(axis=2)[seen] < 1e-4).all()
        assert (scene.normals[~seen] == 0).all()


def test_floors_and_grounds_look_up_and_ceilings_down(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        for name, sign in (("floor", 1), ("grass", 1), ("ceiling", -1)):
            where = scene.semantic == CLASS_ID[name]
            if where.any():
                assert (sign * scene.normals[where][:, 1] > 0.3).all()


def test_there_is_sky_exactly_where_there_is_no_depth_and_no_instance(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        np.testing.assert_array_equal(scene.semantic == 0, scene.depth == 0)
        np.testing.assert_array_equal(scene.semantic == 0, scene.instances == 0)


def test_boundaries_lie_between_instances_and_nowhere_else(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        labels, edge = scene.instances.astype(int), scene.boundaries
        across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
        assert edge[:, :-1][across].all()
        assert edge[:-1][down].all()
        padded = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
        alike = (padded[:-1, 1:] == labels) & (padded[1:, :-1] == labels) & (padded[1:, 1:] == labels)
        assert not edge[alike].any()
        assert 0.01 < edge.mean() < 0.6


def test_without_its_boundaries_a_picture_falls_into_pieces_of_one_class_each(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        pieces, count = label(~scene.boundaries)
        for piece in range(1, count + 1):
            assert len(np.unique(scene.semantic[pieces == piece])) == 1


def test_an_instance_has_one_class(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        for instance in np.unique(scene.instances):
            assert len(np.unique(scene.semantic[scene.instances == instance])) == 1


def test_every_pixel_of_a_person_has_a_part_and_no_other_pixel_has(scenes: list[RenderedScene]) -> None:
    assert any((scene.semantic == PERSON).any() for scene in scenes)
    for scene in scenes:
        np.testing.assert_array_equal(scene.parts > 0, scene.semantic == PERSON)
        np.testing.assert_array_equal(scene.parts, np.array(PART_CLASS)[scene.part_names])


def test_salient_pixels_make_up_whole_things_and_never_stuff(scenes: list[RenderedScene]) -> None:
    stuff = np.array([row.stuff for row in CLASSES])
    assert sum(scene.saliency.any() for scene in scenes) >= len(scenes) - 1
    for scene in scenes:
        assert not stuff[scene.semantic[scene.saliency]].any()
        for instance in np.unique(scene.instances[scene.saliency]):
            assert scene.saliency[scene.instances == instance].all()


def test_no_task_is_trivial(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        assert len(np.unique(scene.semantic)) >= 4
        assert scene.rgb.std() > 15
        assert scene.depth.max() > 2 * scene.depth[scene.depth > 0].min()
        assert len(np.unique(np.round(scene.normals.reshape(-1, 3), 1), axis=0)) > 5


def test_a_scene_depends_on_its_arguments_alone() -> None:
    first, again = (render_scene(3, (24, 32), index=2) for _ in range(2))
    for name in ("rgb", "semantic", "part_names", "instances", "normals", "depth", "boundaries"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for other in (render_scene(4, (24, 32), index=2), render_scene(3, (24, 32), index=3)):
        assert (other.rgb != first.rgb).any()


def test_a_larger_picture_shows_the_same_scene() -> None:
    small, large = render_scene(3, 24, index=5), render_scene(3, 72, index=5)
    np.testing.assert_array_equal(large.instances[1::3, 1::3], small.instances)
    np.testing.assert_allclose(large.depth[1::3, 1::3], small.depth, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "at least 16"),
        ({"size": 32, "stream": "trainign"}, "did you mean 'training'"),
        ({"size": 32, "setting": "outdoor"}, "did you mean 'outdoors'"),
        ({"size": 32, "subject": "dogs"}, "did you mean 'dog'"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        render_scene(0, **arguments)
    assert "\n" not in str(caught.value)
