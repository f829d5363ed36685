"""Standardising teacher features from given statistics, so that no teacher's scale decides the sum of losses.

The rotations are orthonormal Hadamard matrices of the widths that vision transformers have.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sak.errors import UsageError
from sak.features import at_least_float32
from sak.losses.projection import ProjectedTarget, Target


def hadamard(order: int) -> Tensor | None:
    """An orthogonal matrix of +-1, float64 (order, order), or None for orders that this cannot reach.

    Sylvester doubling of the smallest of Paley's matrices (order q + 1 or 2 (q + 1), q prime) whose order divides by
    powers of two: 768 = 64 * 12, 384 = 32 * 12, 1280 = 64 * 20, 1152 = 32 * 36; powers of two are Sylvester's own.
    """
    halvings = (order & -order).bit_length() - 1
    bases = (order >> halving for halving in range(halvings, -1, -1))  # orders that doubling brings to this one
    base = next((matrix for matrix in map(_paley, bases) if matrix is not None), None)
    while base is not None and base.shape[0] < order:
        base = torch.cat([torch.cat([base, base], 1), torch.cat([base, -base], 1)])
    return base


def orthonormal_hadamard(order: int) -> Tensor:
    """`hadamard` divided by sqrt(order), float64 (order, order): orthonormal, entries all of one size.

    ValueError for orders without one, such as those not divisible by four.
    """
    matrix = hadamard(order)
    if matrix is None:
        raise ValueError(f"no Hadamard matrix of order {order} by doubling one of Paley's: use another width")
    return matrix / order**0.5


def _paley(order: int) -> Tensor | None:
    """Paley's Hadamard matrix of +-1 (his first construction, else his second), or None where neither applies."""
    one = torch.ones(1, 1, dtype=torch.float64)
    if order == 1:
        return one
    if order % 4 == 0 and _is_prime(order - 1):
        return _bordered(order - 1, skew=True) + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        inner = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_bordered(half - 1, skew=False), inner) + torch.kron(torch.eye(half), diagonal)
    return None


def _bordered(q: int, *, skew: bool) -> Tensor:
    """Conference matrix of order q + 1: quadratic characters of differences modulo the prime q, bordered by ones."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    numbers = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1 if skew else 1
    matrix[1:, 1:] = character[(numbers[:, None] - numbers[None, :]) % q]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@dataclass(frozen=True)
class Standardisation:
    """Channels x of a teacher at one level become (rotation @ (x - mean)) / scale.

    Attributes:
        mean: (C,).
        scale: (C,) for every channel its own, or () one for all: then angles are kept.
        rotation: orthonormal (C, C), or None.
    """

    mean: Tensor
    scale: Tensor
    rotation: Tensor | None = None

    def __call__(self, target: Target) -> Target:
        """Standardise a map (B, C, H, W) or a projection of one, in float32 or better.

        Projecting and standardising commute, as up-sampling keeps constants. With a scale per channel the leftover
        would be needed per channel: a projection is then refused (UsageError).
        """
        if not isinstance(target, ProjectedTarget):
            return self._apply(target)
        if self.scale.ndim:
            raise UsageError(
                "a projected target cannot be standardised channel by channel: its leftover is one number for all "
                "channels; use PHI-S, or extract this teacher with grid: native"
            )
        leftover = target.leftover / self.scale.to(target.leftover).square()
        return ProjectedTarget(self._apply(target.map), leftover, target.teacher_grid)

    def invert(self, map_: Tensor) -> Tensor:
        """Undo it on a map (B, C, H, W): a student trained on standardised targets, in the teacher's own units."""
        map_ = at_least_float32(map_)
        scaled = map_ * _column(self.scale, map_)
        return _rotate(None if self.rotation is None else self.rotation.T, scaled) + _column(self.mean, map_)

    def to(self, device: torch.device | str) -> "Standardisation":
        """The same on another device; do it once, not at each step."""
        rotation = None if self.rotation is None else self.rotation.to(device)
        return Standardisation(self.mean.to(device), self.scale.to(device), rotation)

    def _apply(self, map_: Tensor) -> Tensor:
        map_ = at_least_float32(map_)
        return _rotate(self.rotation, map_ - _column(self.mean, map_)) / _column(self.scale, map_)


def channel_standardiser(mean: Tensor, variance: Tensor) -> Standardisation:
    """Mean 0 and variance 1 for every channel, from its mean and variance, both (C,); ValueError for a constant one."""
    if not bool((variance > 0).all()):
        raise ValueError(f"{int((variance <= 0).sum())} of {variance.numel()} channels do not vary")
    return Standardisation(mean, variance.sqrt())


def phi_s(mean: Tensor, covariance: Tensor) -> Standardisation:
    """PCA-Hadamard isotropic standardisation, from the features' mean (C,) and covariance (C, C).

    With covariance = U diag(l) U^T, x becomes H U^T (x - mean) / sqrt(mean(l)), H an orthonormal Hadamard matrix: every
    channel then has variance 1 although one scale divides them all (Ranzinger et al., "PHI-S: Distribution Balancing
    for Label-Free Multi-Teacher Distillation", 2024). An eigenvector's sign is arbitrary: here its largest component
    is positive. Computed in float64, returned so. ValueError for features that do not vary at all, or a width without
    a Hadamard matrix.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    mean_variance = values.clamp(min=0).mean()
    if not bool(mean_variance > 0):
        raise ValueError(f"the covariance of {len(values)} channels is zero: there is nothing to standardise")
    hadamard = orthonormal_hadamard(len(values)).to(vectors.device)
    return Standardisation(mean.double(), mean_variance.sqrt(), hadamard @ vectors.T)


def _column(statistic: Tensor, map_: Tensor) -> Tensor:
    """(C,) or () as something that broadcasts over (B, C, H, W)."""
    return statistic.to(map_).reshape(-1, 1, 1)


def _rotate(rotation: Tensor | None, map_: Tensor) -> Tensor:
    """Channels of (B, C, H, W) times a (C, C) matrix."""
    if rotation is None:
        return map_
    with torch.autocast(map_.device.type, enabled=False):
        return torch.einsum("dc,bchw->bdhw", rotation.to(map_), map_)
