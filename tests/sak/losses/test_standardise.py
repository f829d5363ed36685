"""Standardised teachers: variance 1, angles kept by PHI-S, and back again."""

import pytest
import torch

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss
from sak.losses.standardise import channel_standardiser, hadamard, orthonormal_hadamard, phi_s

WIDTHS = (1, 2, 4, 8, 12, 16, 24, 36, 48, 96, 192, 384, 768, 1024, 1152, 1280, 1408, 1536, 1664)


def _features(width=24, count=4000, seed=0):
    """(width, count) with very unequal, correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 2, width, dtype=torch.float64)[:, None]
    return scales * (mixing @ torch.randn(width, count, generator=generator, dtype=torch.float64)) + 3


def _map(features):
    return features.reshape(1, features.shape[0], 50, -1)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 60, 64])
def test_hadamard_matrices_are_orthogonal_and_of_plus_and_minus_one(order):
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 10, 52, 100])
def test_orders_without_a_construction_have_none(order):
    assert hadamard(order) is None


@pytest.mark.parametrize("width", WIDTHS)
def test_divided_by_their_root_they_are_orthonormal_with_entries_of_one_size(width):
    matrix = orthonormal_hadamard(width)
    assert (matrix @ matrix.T - torch.eye(width, dtype=torch.float64)).abs().max() < 1e-12
    assert (matrix.abs() - width**-0.5).abs().max() < 1e-15


@pytest.mark.parametrize("width", [0, 3, 6, 50, 52])
def test_widths_without_one_are_refused(width):
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {width} "):
        orthonormal_hadamard(width)


def test_phi_s_gives_every_channel_variance_one_with_one_scale():
    features = _features()
    standardiser = phi_s(features.mean(1), features.cov())
    assert standardiser.scale.ndim == 0
    made = standardiser(_map(features)).reshape(24, -1)
    assert made.mean(1).abs().max() < 1e-9
    assert torch.allclose(made.var(1), torch.ones(24, dtype=torch.float64))


def test_phi_s_keeps_distances_up_to_its_scale():
    features = _features()
    standardiser = phi_s(features.mean(1), features.cov())
    made = standardiser(_map(features)).reshape(24, -1)
    expected = (features[:, :1] - features).norm(dim=0) / features.cov().diagonal().mean().sqrt()
    assert torch.allclose((made[:, :1] - made).norm(dim=0), expected)


def test_phi_s_holds_for_features_of_low_rank():
    features = _features()[:, :10]
    made = phi_s(features.mean(1), features.cov())(features.reshape(1, 24, 2, 5)).reshape(24, -1)
    assert torch.allclose(made.var(1), torch.ones(24, dtype=torch.float64))


def test_a_channel_standardiser_gives_each_channel_its_own_scale():
    features = _features()
    made = channel_standardiser(features.mean(1), features.var(1))(_map(features)).reshape(24, -1)
    assert torch.allclose(made.var(1), torch.ones(24, dtype=torch.float64))
    expected = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True)
    assert torch.allclose(made, expected)


@pytest.mark.parametrize(
    "make", [lambda f: phi_s(f.mean(1), f.cov()), lambda f: channel_standardiser(f.mean(1), f.var(1))]
)
def test_standardising_can_be_undone(make):
    features = _features()
    standardiser = make(features).to("cpu")
    assert torch.allclose(standardiser.invert(standardiser(_map(features))), _map(features))


def test_eigenvectors_signs_are_fixed():
    features = _features()
    first, second = phi_s(features.mean(1), features.cov()), phi_s(features.mean(1), 4 * features.cov())
    assert torch.allclose(first.rotation, second.rotation)


def test_the_loss_standardises_targets_and_leaves_the_student():
    features = _features(8, 400)
    standardiser = phi_s(features.mean(1), features.cov())
    teacher, student = features.reshape(4, 8, 10, 10), torch.randn(4, 8, 6, 6, dtype=torch.float64)
    loss = DistillationLoss(standardisers={"a": (standardiser,)})
    told = loss({"a": FeatureMaps((3,), (student,))}, {"a": FeatureMaps((3,), (teacher,))}).total
    plain = DistillationLoss()({"a": FeatureMaps((3,), (student,))}, {"a": FeatureMaps((3,), (standardiser(teacher),))})
    assert told == plain.total


def test_half_precision_targets_are_standardised_in_float32():
    features = _features(8, 400)
    standardiser = phi_s(features.mean(1), features.cov())
    with torch.autocast("cpu", torch.bfloat16):
        made = standardiser(features.reshape(4, 8, 10, 10).bfloat16())
    assert made.dtype == torch.float32
    expected = standardiser(features.reshape(4, 8, 10, 10).bfloat16().double())
    assert torch.allclose(made.double(), expected, atol=1e-4)


def test_statistics_without_variation_are_refused():
    with pytest.raises(ValueError, match="1 of 3 channels do not vary"):
        channel_standardiser(torch.zeros(3), torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="covariance of 4 channels is zero"):
        phi_s(torch.zeros(4), torch.zeros(4, 4))


def test_one_standardiser_a_level_is_asked_for():
    map_ = torch.randn(1, 4, 3, 3)
    loss = DistillationLoss(standardisers={"a": (phi_s(torch.zeros(4), torch.eye(4)),)})
    two = {"a": FeatureMaps((3, 6), (map_, map_))}
    with pytest.raises(UsageError, match="a: 1 standardisers for 2 levels"):
        loss(two, two)
