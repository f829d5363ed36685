import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.projection import Reduction, area_matrix, area_pool
from sak.features import bilinear_resize, resize_matrix

SIDES = st.integers(1, 12)


def maps_of(grid, channels=3, batch=2, dtype=torch.float32):
    return torch.randn(batch, channels, *grid, generator=torch.Generator().manual_seed(grid[0] * 100 + grid[1])).to(
        dtype
    )


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["native", "projection", "area"]))
def test_the_stored_grid_is_what_the_reduction_gives(height, width, rows, columns, kind):
    if kind == "area" and height > rows and width < columns:
        return
    reduction = Reduction(kind, (height, width), (rows, columns))
    reduced = reduction(maps_of((height, width)))
    assert tuple(reduced.map.shape[-2:]) == reduction.stored_grid
    assert (reduced.leftover is not None) is reduction.has_leftover
    if height <= rows or kind == "native":
        assert reduction.effective == "native"
        assert torch.equal(reduced.map, maps_of((height, width)))


@pytest.mark.parametrize(
    ("teacher", "student"), [((64, 64), (24, 24)), ((27, 27), (24, 24)), ((9, 5), (4, 3)), ((8, 3), (4, 6))]
)
def test_projection_is_the_least_squares_one(teacher, student):
    maps = maps_of(teacher, dtype=torch.float64)
    reduced = Reduction("projection", teacher, student)(maps.float())
    up = torch.kron(resize_matrix(student[0], teacher[0]), resize_matrix(student[1], teacher[1]))
    flat = maps.float().double().flatten(2)
    driver = "gels" if teacher[1] >= student[1] else "gelsd"  # full rank, or the solution of least norm
    solution = torch.linalg.lstsq(up, flat.flatten(0, 1).T, driver=driver).solution
    expected = (up @ solution).T.reshape(flat.shape)
    got = bilinear_resize(reduced.map.double(), teacher).flatten(2)
    assert float((got - expected).norm() / expected.norm()) < 1e-6
    residual = (flat - expected).square().sum((1, 2))
    torch.testing.assert_close(reduced.leftover.double(), residual, rtol=1e-6, atol=1e-9 * float(flat.square().sum()))


def test_map_cosine_on_the_teachers_grid_follows_from_the_projection():
    teacher, student = (64, 64), (24, 24)
    target, guess = maps_of(teacher), maps_of(student)
    reduced = Reduction("projection", teacher, student)(target)
    up_guess = bilinear_resize(guess.double(), teacher).flatten(1)
    up_target = bilinear_resize(reduced.map.double(), teacher).flatten(1)
    direct = torch.cosine_similarity(up_guess, target.double().flatten(1))
    energy = up_target.square().sum(1) + reduced.leftover
    indirect = (up_guess * up_target).sum(1) / (up_guess.norm(dim=1) * energy.sqrt())
    torch.testing.assert_close(indirect, direct, rtol=1e-6, atol=1e-6)


def test_energy_is_that_of_the_teachers_map():
    maps = maps_of((8, 8))
    for kind in ("native", "projection", "area"):
        torch.testing.assert_close(Reduction(kind, (8, 8), (4, 4))(maps).energy, maps.double().square().sum((1, 2, 3)))


@given(st.integers(1, 40), st.integers(1, 40))
def test_areas_cover_every_cell_once(a, b):
    source, target = max(a, b), min(a, b)
    matrix = area_matrix(source, target)
    torch.testing.assert_close(matrix.sum(1), torch.ones(target, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.full((source,), target / source, dtype=torch.float64))


def test_areas_are_plain_means_where_grids_divide():
    maps = maps_of((8, 6))
    torch.testing.assert_close(area_pool(maps, (4, 3)), torch.nn.functional.avg_pool2d(maps, 2))


def test_areas_keep_the_mean():
    maps = maps_of((64, 64))
    torch.testing.assert_close(area_pool(maps, (24, 24)).mean((2, 3)), maps.mean((2, 3)), atol=1e-6, rtol=1e-5)


def test_reduced_maps_are_at_least_float32():
    maps = maps_of((8, 8)).bfloat16()
    assert Reduction("area", (8, 8), (4, 4))(maps).map.dtype == torch.float32
    assert Reduction("projection", (8, 8), (4, 4))(maps).map.dtype == torch.float32


def test_maps_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"maps must be \(B, C, 8, 8\), got \(2, 3, 8, 7\)"):
        Reduction("native", (8, 8), (4, 4))(maps_of((8, 7)))
