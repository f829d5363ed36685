"""Feature maps, tokens and the resize."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.features import FeatureMaps, bilinear_resize, default_levels, map_to_tokens, resize_matrix, tokens_to_map

SIDES = st.integers(1, 40)


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_resize_is_the_product_of_its_two_matrices(height, width, new_height, new_width):
    map_ = _random(1, 2, height, width)
    rows, columns = resize_matrix(height, new_height), resize_matrix(width, new_width)
    expected = bilinear_resize(map_, (new_height, new_width))
    assert torch.allclose(rows @ map_ @ columns.T, expected, atol=1e-12)


@given(SIDES, SIDES)
def test_the_resize_keeps_constants(source, target):
    assert torch.allclose(resize_matrix(source, target).sum(1), torch.ones(target, dtype=torch.float64))


@pytest.mark.parametrize(("source", "target"), [(24, 27), (24, 64), (32, 64), (28, 64), (36, 64), (24, 25), (6, 16)])
def test_up_sampling_can_be_undone_and_is_well_conditioned(source, target):
    matrix = resize_matrix(source, target)
    assert torch.linalg.matrix_rank(matrix) == source
    assert torch.linalg.cond(matrix) < 4


def test_a_resize_to_its_own_size_is_the_map_itself():
    map_ = _random(1, 2, 5, 7)
    assert bilinear_resize(map_, (5, 7)) is map_
    assert torch.equal(resize_matrix(5, 5), torch.eye(5, dtype=torch.float64))


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="0 -> 3"):
        resize_matrix(0, 3)


@given(st.integers(1, 3), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_tokens_and_maps_are_each_others_inverse(batch, prefix, height, width, channels):
    tokens = _random(batch, prefix + height * width, channels)
    map_ = tokens_to_map(tokens, prefix=prefix, grid=(height, width))
    assert map_.shape == (batch, channels, height, width)
    assert torch.equal(map_to_tokens(map_), tokens[:, prefix:])
    assert torch.equal(map_[:, :, -1, 0], tokens[:, prefix + (height - 1) * width])


def test_a_grid_that_does_not_hold_the_tokens_is_refused():
    with pytest.raises(ValueError, match="10 tokens are not 1 special ones and a 3x4 grid"):
        tokens_to_map(_random(1, 10, 2), prefix=1, grid=(3, 4))


@pytest.mark.parametrize(("depth", "levels"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (4, (1, 2, 3, 4))])
def test_default_levels_are_the_quarters(depth, levels):
    assert default_levels(depth) == levels


@pytest.mark.parametrize("depth", [0, 2, 13])
def test_a_depth_without_quarters_asks_for_levels(depth):
    with pytest.raises(ValueError, match=f"multiple of 4, got {depth}; name the levels"):
        default_levels(depth)


def test_maps_are_found_and_named_by_block_number():
    maps = FeatureMaps((6, 12), (_random(1, 2, 3, 4), _random(1, 2, 3, 4) + 1))
    assert maps[12] is maps.maps[1]
    assert list(maps) == list(maps.maps)
    assert len(maps) == 2
    assert maps.names == ("level6", "level12")
    assert maps.grid == (3, 4)
    assert maps.width == 2
    assert torch.equal(maps.apply(lambda map_: 2 * map_)[6], 2 * maps[6])
    with pytest.raises(KeyError, match=r"no level 3; levels are \(6, 12\)"):
        maps[3]


def test_levels_and_maps_that_do_not_belong_together_are_refused():
    map_ = _random(1, 2, 3, 4)
    with pytest.raises(ValueError, match="2 levels"):
        FeatureMaps((3, 6), (map_,))
    with pytest.raises(ValueError, match=r"increasing block numbers from 1, got \(6, 3\)"):
        FeatureMaps((6, 3), (map_, map_))
    with pytest.raises(ValueError, match=r"increasing block numbers from 1, got \(0, 3\)"):
        FeatureMaps((0, 3), (map_, map_))
    with pytest.raises(ValueError, match=r"level 3: a map is \(B, C, H, W\), got shape \(2, 3, 4\)"):
        FeatureMaps((3,), (map_[0],))
    with pytest.raises(ValueError, match="levels have different grids"):
        _ = FeatureMaps((3, 6), (map_, _random(1, 2, 5, 4))).grid
