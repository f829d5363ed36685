"""The table of nearest levels against a binary search."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.cache.quantizers import QUANTIZERS, NearestLevel, gaussian_levels

LEVELS = {"int8": QUANTIZERS["int8"](1).levels, "int4": gaussian_levels(), "uneven": torch.tensor([-9.0, 0, 0.5, 40])}


def searched(levels, values):
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2, out_int32=True)


@pytest.mark.parametrize("name", LEVELS)
def test_it_is_the_binary_search_also_beside_every_edge_and_far_outside(name):
    levels = LEVELS[name]
    edges = (levels[1:] + levels[:-1]) / 2
    beside = [edges.nextafter(torch.tensor(way)) for way in (-torch.inf, torch.inf)]
    far = torch.tensor([0.0, -0.0, 1e-45, 1e30, -1e30, 3.4e38, -3.4e38, torch.inf, -torch.inf])
    grid = torch.linspace(float(edges[0]) - 2, float(edges[-1]) + 2, 200_001)
    values = torch.cat([edges, *beside, far, grid])
    found = NearestLevel(levels)(values)
    assert found.dtype == torch.int32
    assert torch.equal(found, searched(levels, values))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=40, unique=True), st.integers(0, 99))
def test_any_levels_will_do(levels, seed):
    levels = torch.tensor(sorted(levels))
    edges = (levels[1:] + levels[:-1]) / 2
    assume(edges.diff().min() > 1e-4 * (edges[-1] - edges[0]))  # a table over others would be large
    values = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(seed)) * levels.abs().max()
    assert torch.equal(NearestLevel(levels)(values), searched(levels, values))


def test_nan_is_some_level_and_no_error():
    assert 0 <= int(NearestLevel(LEVELS["int8"])(torch.tensor([torch.nan]))) <= 254
