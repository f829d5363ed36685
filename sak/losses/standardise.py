"""Standardising teacher features from given statistics, so that no teacher's scale decides the sum of losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sak.errors import UsageError
from sak.losses.hadamard import orthonormal_hadamard
from sak.losses.projection import ProjectedTarget
from sak.losses.targets import Target


@dataclass(frozen=True)
class Standardiser:
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
        map_ = _wide(map_)
        scaled = map_ * _column(self.scale, map_)
        return _rotate(None if self.rotation is None else self.rotation.T, scaled) + _column(self.mean, map_)

    def to(self, device: torch.device | str) -> "Standardiser":
        """The same on another device; do it once, not at each step."""
        rotation = None if self.rotation is None else self.rotation.to(device)
        return Standardiser(self.mean.to(device), self.scale.to(device), rotation)

    def _apply(self, map_: Tensor) -> Tensor:
        map_ = _wide(map_)
        return _rotate(self.rotation, map_ - _column(self.mean, map_)) / _column(self.scale, map_)


def channel_standardiser(mean: Tensor, variance: Tensor) -> Standardiser:
    """Mean 0 and variance 1 for every channel, from its mean and variance, both (C,); ValueError for a constant one."""
    if not bool((variance > 0).all()):
        raise ValueError(f"{int((variance <= 0).sum())} of {variance.numel()} channels do not vary")
    return Standardiser(mean, variance.sqrt())


def phi_s(mean: Tensor, covariance: Tensor) -> Standardiser:
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
    return Standardiser(mean.double(), mean_variance.sqrt(), hadamard @ vectors.T)


def _wide(map_: Tensor) -> Tensor:
    return map_.to(torch.promote_types(map_.dtype, torch.float32))


def _column(statistic: Tensor, map_: Tensor) -> Tensor:
    """(C,) or () as something that broadcasts over (B, C, H, W)."""
    return statistic.to(map_).reshape(-1, 1, 1)


def _rotate(rotation: Tensor | None, map_: Tensor) -> Tensor:
    """Channels of (B, C, H, W) times a (C, C) matrix."""
    if rotation is None:
        return map_
    with torch.autocast(map_.device.type, enabled=False):
        return torch.einsum("dc,bchw->bdhw", rotation.to(map_), map_)
