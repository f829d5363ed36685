"""A projection says of the full teacher map exactly what it promises."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import UsageError
from sak.features import FeatureMaps, resize_matrix
from sak.losses import projection
from sak.losses.distillation import DistillationLoss
from sak.losses.projection import ProjectedTarget, TargetMaps, gram, is_projectable, project, upsample
from sak.losses.standardise import channel_standardiser, phi_s

SIDES = st.integers(1, 9)


@st.composite
def grids(draw):
    """(student grid, teacher grid): the teacher taller, its width anything, narrower and equal included."""
    height, width = draw(SIDES), draw(SIDES)
    return (height, width), (height + draw(st.integers(1, 9)), draw(SIDES))


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _loss_and_gradient(kind, student, target):
    student = student.clone().requires_grad_()
    losses = DistillationLoss(kind)({"a": FeatureMaps((3,), (student,))}, {"a": TargetMaps((3,), (target,))})
    (gradient,) = torch.autograd.grad(losses.total, student)
    return losses, gradient


@given(grids(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_cosine_and_squared_error_and_their_gradients_are_those_of_the_full_map(pair, batch, channels, seed):
    own, grid = pair
    teacher, student = _random(batch, channels, *grid, seed=seed), _random(batch, channels, *own, seed=seed + 100)
    for kind in ("cos", "l2"):
        full, gradient = _loss_and_gradient(kind, student, teacher)
        projected, of_projection = _loss_and_gradient(kind, student, project(teacher, own))
        assert projected.total.item() == pytest.approx(full.total.item(), rel=1e-10, abs=1e-12)
        assert torch.allclose(of_projection, gradient, rtol=1e-9, atol=1e-11)


@given(grids(), st.integers(0, 9))
def test_the_projection_is_the_least_squares_one_with_the_whole_matrix(pair, seed):
    own, grid = pair
    teacher = _random(1, 2, *grid, seed=seed)
    whole = torch.kron(resize_matrix(own[0], grid[0]), resize_matrix(own[1], grid[1]))
    expected = torch.linalg.pinv(whole) @ teacher.reshape(2, -1).T
    target = project(teacher, own)
    assert torch.allclose(target.map.reshape(2, -1).T, expected, atol=1e-10)
    residual = teacher.reshape(2, -1).T - whole @ expected
    assert target.leftover.item() == pytest.approx(residual.square().sum().item(), rel=1e-9, abs=1e-18)
    up = upsample(target.map, grid)
    assert (teacher - up).mul(up).sum().abs() < 1e-10 * (1 + teacher.square().sum())


@given(grids())
def test_the_gram_matrices_are_inner_products_on_the_teachers_grid(pair):
    own, grid = pair
    first, second = _random(2, 3, *own), _random(2, 3, *own, seed=1)
    expected = (upsample(first, grid) * upsample(second, grid)).sum()
    assert torch.allclose((gram(first, grid) * second).sum(), expected, atol=1e-10)


@given(grids(), st.integers(0, 9))
def test_smooth_l1_loses_half_the_leftover_where_all_differences_are_small(pair, seed):
    own, grid = pair
    teacher, student = 0.05 * _random(2, 3, *grid, seed=seed), 0.05 * _random(2, 3, *own, seed=seed + 100)
    full, gradient = _loss_and_gradient("cos+l1", student, teacher)
    projected, of_projection = _loss_and_gradient("cos+l1", student, project(teacher, own))
    level = projected.teachers["a"][0]
    shortfall = full.teachers["a"][0].smooth_l1 - level.smooth_l1
    assert shortfall.item() == pytest.approx(level.leftover.item() / 2, rel=1e-9, abs=1e-15)
    assert torch.allclose(of_projection, gradient, rtol=1e-8, atol=1e-10)


def test_smooth_l1_is_that_against_the_up_sampled_projection():
    teacher, student = 4 * _random(2, 3, 16, 16), 4 * _random(2, 3, 6, 6, seed=1)
    target = project(teacher, (6, 6))
    expected = F.smooth_l1_loss(upsample(student, (16, 16)), upsample(target.map, (16, 16)))
    losses, _ = _loss_and_gradient("cos+l1", student, target)
    level = losses.teachers["a"][0]
    assert level.smooth_l1.item() == pytest.approx(expected.item(), rel=1e-12)
    full, _ = _loss_and_gradient("cos+l1", student, teacher)
    shortfall = (full.teachers["a"][0].smooth_l1 - level.smooth_l1).item()
    assert 0 < shortfall < level.leftover.item() / 2


def test_a_map_in_the_range_of_the_resize_is_kept_whole():
    student = _random(2, 3, 6, 8)
    target = project(upsample(student, (13, 17)), (6, 8))
    assert torch.allclose(target.map, student)
    assert target.leftover.max() < 1e-24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_leftover_neither_overflows_nor_drowns_in_rounding(dtype):
    """A residual of one part in a thousand of a map whose energy is far above float16's range."""
    smooth = upsample(3000 + 500 * _random(1, 4, 6, 6), (16, 16)).to(dtype).double()
    residual = _random(1, 4, 16, 16, seed=1)
    teacher = (smooth + residual).to(dtype)
    target = project(teacher, (6, 6))
    exact = project(teacher.double(), (6, 6))
    assert target.map.dtype == target.leftover.dtype == torch.float32
    assert target.leftover.item() == pytest.approx(exact.leftover.item(), rel=1e-5)
    assert torch.allclose(target.map, exact.map.float(), rtol=1e-6)


def test_the_batch_and_autocast_do_not_show_in_a_projection():
    teacher = _random(5, 3, 16, 16, dtype=torch.float32)
    whole = project(teacher, (6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        alone = [project(image[None], (6, 6)) for image in teacher]
    assert torch.equal(whole.map, torch.cat([target.map for target in alone]))
    assert torch.equal(whole.leftover, torch.cat([target.leftover for target in alone]))


def test_float32_losses_on_a_projection_agree_with_the_full_map():
    teacher, student = _random(2, 48, 64, 64, dtype=torch.float32), _random(2, 48, 24, 24, seed=1, dtype=torch.float32)
    for kind in ("cos", "l2"):
        full, _ = _loss_and_gradient(kind, student.double(), teacher.double())
        projected, _ = _loss_and_gradient(kind, student, project(teacher, (24, 24)))
        assert projected.total.dtype == torch.float32
        assert projected.total.item() == pytest.approx(full.total.item(), rel=1e-6)


def test_a_half_precision_projection_is_compared_in_float32():
    target = project(_random(2, 5, 16, 16, dtype=torch.float32), (6, 6)).to("cpu", torch.float16)
    assert target.map.dtype == torch.float16
    assert target.leftover.dtype == torch.float32
    losses, _ = _loss_and_gradient("cos+l1", _random(2, 5, 6, 6, seed=1, dtype=torch.float32), target)
    assert losses.total.dtype == torch.float32


@pytest.mark.parametrize("own", [(6, 6), (5, 7)])
def test_phi_s_commutes_with_projecting(own):
    teacher = _random(3, 8, 16, 13) * torch.arange(1, 9).reshape(1, 8, 1, 1) + 5
    features = teacher.transpose(0, 1).reshape(8, -1)
    standardiser = phi_s(features.mean(1), features.cov())
    before, after = standardiser(project(teacher, own)), project(standardiser(teacher), own)
    assert torch.allclose(before.map, after.map)
    assert torch.allclose(before.leftover, after.leftover)


def test_channel_scales_are_refused_on_a_projection():
    standardiser = channel_standardiser(torch.zeros(3), torch.ones(3))
    with pytest.raises(UsageError, match="cannot be standardised channel by channel"):
        standardiser(project(_random(1, 3, 7, 7), (6, 6)))


def test_heights_alone_decide_what_is_projected():
    assert is_projectable((7, 3), (6, 6))
    assert not is_projectable((6, 9), (6, 6))
    with pytest.raises(ValueError, match="a 6x9 teacher map is not taller than the 6x6 student grid"):
        project(_random(1, 3, 6, 9), (6, 6))
    with pytest.raises(ValueError, match="no images"):
        project(_random(0, 3, 7, 9), (6, 6))


def test_parts_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"got shapes \(2, 3, 6, 6\) and \(3,\)"):
        ProjectedTarget(torch.zeros(2, 3, 6, 6), torch.zeros(3), (7, 7))
    with pytest.raises(ValueError, match="not taller"):
        ProjectedTarget(torch.zeros(2, 3, 6, 6), torch.zeros(2), (6, 7))


def test_the_compiler_takes_the_factors_as_constants_and_the_marker_is_its_own():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked)
    assert vars(marked).items() <= vars(projection._factors).items()
