import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.student.router import NOISE_FLOOR, Router, draw_noise, mix, noise_shape


@pytest.fixture
def router():
    torch.manual_seed(3)
    return Router(width=8, experts=3).double()


@pytest.fixture
def tokens():
    return torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shape", [None, (2, 3), (2, 3, 2, 3)], ids=["evaluation", "per image", "per pixel"])
def test_gradients_are_those_of_finite_differences(router, tokens, shape):
    noise = None if shape is None else torch.randn(shape, dtype=torch.float64)
    parameters = dict(router.named_parameters())

    def gates(tokens, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(router, named, (tokens, noise))

    inputs = [tokens, *(parameter.detach() for parameter in parameters.values())]
    assert torch.autograd.gradcheck(gates, [value.clone().requires_grad_() for value in inputs])


def test_without_noise_the_gates_are_the_softmax_of_the_mean_logits(router, tokens):
    clean = router.logits(tokens)[:, :3]
    assert torch.equal(router(tokens), clean.softmax(dim=1))


def test_noise_enters_as_equation_4_with_the_published_floor(router, tokens):
    noise = torch.randn(2, 3, dtype=torch.float64)
    clean, raw = router.logits(tokens).chunk(2, dim=1)
    expected = (clean + noise * (torch.log1p(raw.exp()) + NOISE_FLOOR)).softmax(dim=1)
    torch.testing.assert_close(router(tokens, noise), expected, rtol=0, atol=1e-14)


def test_noise_that_is_equal_in_every_pixel_gives_the_gates_of_noise_per_image(router, tokens):
    noise = torch.randn(2, 3, dtype=torch.float64)
    everywhere = noise[..., None, None].expand(2, 3, 2, 3)
    per_pixel = router(tokens, everywhere)
    torch.testing.assert_close(per_pixel, router(tokens, noise)[..., None, None].expand_as(per_pixel))


def test_the_router_sees_every_token_alike(router, tokens):
    torch.testing.assert_close(router(tokens.flip(1)), router(tokens))


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(["image", "pixel"]),
)
def test_gates_sum_to_one_over_the_experts(batch, experts, grid, kind):
    router = Router(width=4, experts=experts)
    tokens = torch.randn(batch, grid[0] * grid[1], 4)
    noise = draw_noise(noise_shape(kind, batch=batch, experts=experts, grid=grid), tokens, None)
    gates = router(tokens, noise)
    assert gates.shape == noise.shape
    torch.testing.assert_close(gates.sum(dim=1), torch.ones_like(gates[:, 0]))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_the_mix_is_the_weighted_sum_of_the_experts(shape):
    gates, experts = torch.rand(shape), [torch.randn(2, 7, 4, 5) for _ in range(3)]
    weights = gates if gates.ndim == 4 else gates[..., None, None].expand(2, 3, 4, 5)
    expected = torch.einsum("behw,ebchw->bchw", weights, torch.stack(experts))
    torch.testing.assert_close(mix(gates, experts), expected)
