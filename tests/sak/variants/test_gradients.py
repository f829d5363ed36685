"""PCGrad and CAGrad: what their papers say of the combined gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import UsageError
from sak.variants.weighting import cagrad, cagrad_objective, combination, pcgrad, pcgrad_projections


def gradients(count, size=6, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10_000))
def test_two_projected_gradients_have_no_negative_dot_product_with_the_other_task(seed):
    g = gradients(2, seed=seed)
    projected = pcgrad_projections(g @ g.T, generator(seed)) @ g
    assert (projected[0] @ g[1]) >= -1e-9
    assert (projected[1] @ g[0]) >= -1e-9


@given(st.integers(0, 10_000), st.integers(3, 5))
def test_each_projection_is_the_algorithms_own(seed, count):
    """Against gradients themselves, not their Gram matrix, with the same order."""
    g = gradients(count, seed=seed)
    draws = generator(seed)
    expected = g.clone()
    for i in range(count):
        for j in torch.randperm(count, generator=draws).tolist():
            if j != i and (agreement := expected[i] @ g[j]) < 0:
                expected[i] = expected[i] - agreement / (g[j] @ g[j]) * g[j]
                assert expected[i] @ g[j] >= -1e-9
    found = pcgrad_projections(g @ g.T, generator(seed)) @ g
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pcgrad(g @ g.T, generator(seed)) @ g, expected.sum(0))


def test_without_conflicts_pcgrad_is_the_plain_sum():
    g = gradients(4).abs()
    assert torch.equal(pcgrad(g @ g.T, generator()), torch.ones(4, dtype=torch.float64))


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0.1, 0.9))
def test_cagrad_solves_its_own_problem(seed, count, c):
    """d maximises the smallest g_i . d where |d - g_0| <= c |g_0|: the dual's minimum is that product."""
    g = gradients(count, seed=seed)
    mean = g.mean(0)
    d = cagrad(g @ g.T, c) @ g / count
    assert (d - mean).norm() <= c * mean.norm() * (1 + 1e-6)
    inner, uniform = (g @ g.T).numpy(), np.full(count, 1 / count)
    radius = c * float(mean.norm())
    best = min(cagrad_objective(inner, uniform, radius, w) for w in np.random.default_rng(seed).dirichlet(uniform, 300))
    reached = float((g @ d).min())
    assert reached <= best + 1e-6
    assert reached >= float((g @ mean).min()) - 1e-6


def test_cagrad_without_a_radius_is_the_plain_sum():
    g = gradients(3)
    torch.testing.assert_close(cagrad(g @ g.T, 0.0), torch.ones(3, dtype=torch.float64))


def test_gradients_that_are_zero_break_neither():
    gram = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.isfinite(pcgrad(gram, generator())).all()
    assert torch.isfinite(cagrad(gram, 0.4)).all()


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="no gradient method 'mgda'; known: sum, pcgrad, cagrad"):
        combination("mgda")
