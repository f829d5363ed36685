"""The ray caster against geometry worked out another way."""

import numpy as np
import pytest

from pipeline.demo.render.packed import pack
from pipeline.demo.render.rays import blocked, first_hits
from pipeline.demo.scenes.scene import Placed
from pipeline.demo.things.materials import Material
from pipeline.demo.things.shapes import BALL, BLOCK, LIMB, PILLAR, Shape, plane, thing, turn

GREY = Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def shape(kind: int, rng: np.random.Generator, parameters: tuple[float, float]) -> Shape:
    """A solid of this kind somewhere within two metres, turned at random."""
    size = rng.uniform(0.3, 0.8, 3)
    if kind == LIMB:
        size[:] = size[0]
    rotation = turn(pitch=rng.uniform(-3, 3), yaw=rng.uniform(-3, 3), roll=rng.uniform(-3, 3))
    return Shape(kind, rng.uniform(-1, 1, 3), rotation, size, GREY, parameters)


def level(kind: int, p: np.ndarray, first: float, second: float) -> np.ndarray:
    """Zero on the surface, negative inside, of local points (n, 3); written from the definitions of the solids."""
    x, y, z = p.T
    if kind == BALL:
        return x**2 + y**2 + z**2 - 1
    if kind == BLOCK:
        shrink = (y + 1) / 2
        return np.maximum.reduce([np.abs(y) - 1, np.abs(x) - 1 + first * shrink, np.abs(z) - 1 + second * shrink])
    if kind == LIMB:
        return x**2 + (y - np.clip(y, -first, first)) ** 2 + z**2 - 1
    radius = np.hypot(x, z)
    mantle = radius - (1 - first * (y + 1) / 2)
    return np.maximum.reduce([np.abs(y) - 1, mantle, second - radius if second else mantle])


CASES = [
    (BALL, (0.0, 0.0)),
    (BLOCK, (0.0, 0.0)),
    (BLOCK, (0.4, 0.9)),
    (PILLAR, (0.0, 0.0)),
    (PILLAR, (0.8, 0.0)),
    (PILLAR, (0.0, 0.7)),
    (LIMB, (1.3, 0.0)),
]


@pytest.mark.parametrize(("kind", "parameters"), CASES)
def test_a_hit_lies_on_the_surface_and_nothing_of_the_solid_lies_before_it(
    kind: int, parameters: tuple[float, float]
) -> None:
    rng = np.random.default_rng(kind)
    solid = shape(kind, rng, parameters)
    packed = pack((Placed(thing("box", [solid]), (0.0, 0.0, 0.0)),))
    origin = np.array([4.0, 1.0, 3.0])
    directions = solid.centre + rng.uniform(-0.9, 0.9, (300, 3)) - origin
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = first_hits(packed.geometry, origin, directions)
    met = hits.shape >= 0
    assert 20 < met.sum() < 300
    assert np.abs(level(kind, hits.local[met], *parameters)).max() < 1e-9
    steps = np.linspace(0.0, 1.0, 400)[None, :, None]
    reach = np.where(met, hits.distance, 9.0)[:, None, None] * (1 - 1e-6)
    points = origin + steps * reach * directions[:, None, :] - solid.centre
    local = np.einsum("ji,nsj->nsi", solid.rotation, points) / solid.size
    before = level(kind, local.reshape(-1, 3), *parameters).reshape(300, 400)
    assert before.min() > -1e-4


@pytest.mark.parametrize(("kind", "parameters"), CASES)
def test_normals_are_the_gradient_of_the_surface_and_face_the_ray(kind: int, parameters: tuple[float, float]) -> None:
    rng = np.random.default_rng(10 + kind)
    solid = shape(kind, rng, parameters)
    packed = pack((Placed(thing("box", [solid]), (0.0, 0.0, 0.0)),))
    origin = np.array([-3.0, 2.0, 3.0])
    directions = solid.centre + rng.uniform(-0.5, 0.5, (200, 3)) - origin
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = first_hits(packed.geometry, origin, directions)
    met = hits.shape >= 0
    step = 1e-6
    gradient = np.empty((int(met.sum()), 3))
    for axis in range(3):
        offset = np.eye(3)[axis] * step
        ahead, behind = (level(kind, hits.local[met] + s * offset, *parameters) for s in (1, -1))
        gradient[:, axis] = (ahead - behind) / (2 * step)
    world = np.einsum("ij,nj->ni", solid.rotation / solid.size, gradient)
    world /= np.linalg.norm(world, axis=1, keepdims=True)
    agreement = (world * hits.normal[met]).sum(axis=1)
    assert np.median(np.abs(agreement)) > 1 - 1e-6
    assert (np.abs(agreement) > 0.999).mean() > 0.97
    assert ((hits.normal[met] * directions[met]).sum(axis=1) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(hits.normal[met], axis=1), 1.0, atol=1e-12)


def crowd(count: int) -> list[Shape]:
    """Many solids of all kinds, with a floor."""
    rng = np.random.default_rng(5)
    kinds = [CASES[int(rng.integers(len(CASES)))] for _ in range(count)]
    solids = [shape(kind, rng, parameters) for kind, parameters in kinds]
    spread = [Shape(s.kind, s.centre * 4, s.rotation, s.size, GREY, s.parameters) for s in solids]
    return [*spread, plane((0, -5, 0), (0, 1, 0), GREY)]


def test_the_tree_finds_what_looking_at_every_shape_finds() -> None:
    solids = crowd(90)
    origin = np.array([9.0, 2.0, 8.0])
    rng = np.random.default_rng(1)
    directions = rng.uniform(-4, 4, (500, 3)) - origin
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    together = first_hits(pack((Placed(thing("box", solids), (0.0, 0.0, 0.0)),)).geometry, origin, directions)
    alone = [
        first_hits(pack((Placed(thing("box", [one]), (0.0, 0.0, 0.0)),)).geometry, origin, directions).distance
        for one in solids
    ]
    np.testing.assert_array_equal(together.distance, np.min(alone, axis=0))
    np.testing.assert_array_equal(together.shape[together.shape >= 0], np.argmin(alone, axis=0)[together.shape >= 0])


def test_light_is_blocked_exactly_where_a_casting_shape_is_met_within_reach() -> None:
    solids = crowd(60)
    rng = np.random.default_rng(2)
    origin, reach = np.array([6.0, 3.0, 7.0]), rng.uniform(1.0, 14.0, 400)
    directions = rng.uniform(-4, 4, (400, 3)) - origin
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for casting in (True, False):
        shapes = [
            Shape(s.kind, s.centre, s.rotation, s.size, GREY, s.parameters, casts=casting or number % 2 == 0)
            for number, s in enumerate(solids[:-1])
        ]
        kept = [s for s in shapes if s.casts]
        packed = pack((Placed(thing("box", shapes), (0.0, 0.0, 0.0)),))
        only = first_hits(pack((Placed(thing("box", kept), (0.0, 0.0, 0.0)),)).geometry, origin, directions)
        found = blocked(packed.geometry, np.tile(origin, (400, 1)), directions, reach, False)
        np.testing.assert_array_equal(found, only.distance < reach)


def test_planes_block_ambient_light_but_cast_no_shadows() -> None:
    floor = pack((Placed(thing("floor", [plane((0, 0, 0), (0, 1, 0), GREY)]), (0.0, 0.0, 0.0)),)).geometry
    origins, down = np.array([[0.0, 1.0, 0.0]]), np.array([[0.0, -1.0, 0.0]])
    assert blocked(floor, origins, down, np.array([2.0]), True).all()
    assert not blocked(floor, origins, down, np.array([0.5]), True).any()
    assert not blocked(floor, origins, down, np.array([2.0]), False).any()


@pytest.mark.parametrize("question", [first_hits, blocked])
def test_code_on_disk_is_made_anew_when_the_rays_or_the_solids_change(question):
    assert [name for name, _, _ in question._cache._cache_file._source_stamp] == ["rays.py", "solids.py"]
