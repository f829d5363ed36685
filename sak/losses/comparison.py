"""A student map against one target: the parts that the distillation loss and rep_sim are made of.

All values are in float32 or better whatever the inputs and autocast; float64 stays float64. Sums run over the grid on
which the published loss compares, the teacher's where it is taller, also where only its projection is at hand.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sak.errors import UsageError
from sak.features import bilinear_resize
from sak.losses.projection import ProjectedTarget, gram, is_projectable, upsample
from sak.losses.targets import Target

SMALLEST_NORM = 1e-8
"""A shorter vector counts as one of this length: a zero map has cosine 0, not NaN."""


@dataclass(frozen=True)
class MapPair:
    """Student and teacher map as the loss sees them, both (B, C, H, W) on one grid, float32 or float64."""

    student: Tensor
    teacher: Tensor

    def map_cosine(self) -> Tensor:
        """Cosine over the whole flattened C*H*W map, not per position, (B,)."""
        student, teacher = self.student.flatten(1), self.teacher.flatten(1)
        return _cosine((student * teacher).sum(1), student.square().sum(1), teacher.square().sum(1))

    def token_cosine(self) -> Tensor:
        """Cosine over the channels of each position, the mean over positions, (B,)."""
        student, teacher = self.student, self.teacher
        of_positions = _cosine((student * teacher).sum(1), student.square().sum(1), teacher.square().sum(1))
        return of_positions.flatten(1).mean(1)

    def squared_error(self) -> Tensor:
        """Mean over elements, ()."""
        return F.mse_loss(self.student, self.teacher)

    def smooth_l1(self) -> Tensor:
        """Smooth-L1 with beta 1, mean over elements, ()."""
        return F.smooth_l1_loss(self.student, self.teacher)

    def leftover(self) -> Tensor:
        """Nothing of a full map is lost: zero, ()."""
        return self.student.new_zeros(())


@dataclass(frozen=True)
class ProjectedPair:
    """A student map (B, C, h, w) and a projected target on the same grid, float32 or float64."""

    student: Tensor
    target: ProjectedTarget

    def map_cosine(self) -> Tensor:
        """Cosine of the up-sampled student with the full teacher map, exactly, (B,)."""
        student, teacher, grid = self.student, self.target.map, self.target.teacher_grid
        spread = gram(student, grid)
        energy = (gram(teacher, grid) * teacher).flatten(1).sum(1) + self.target.leftover
        return _cosine((spread * teacher).flatten(1).sum(1), (spread * student).flatten(1).sum(1), energy)

    def token_cosine(self) -> Tensor:
        """Cannot be had: UsageError."""
        raise UsageError(
            "cosine: token needs every position of the teacher's map, and a projected target has not kept them; "
            "use cosine: map, or extract this teacher with grid: native"
        )

    def squared_error(self) -> Tensor:
        """Mean over the elements of the full teacher maps, exactly, ()."""
        difference = self.student - self.target.map
        energy = (gram(difference, self.target.teacher_grid) * difference).flatten(1).sum(1)
        return ((energy + self.target.leftover) / self.target.elements).mean()

    def smooth_l1(self) -> Tensor:
        """Smooth-L1 against Up, not against t: lower by about half the leftover per element, ().

        Where all differences are below 1 it is lower by exactly half of `leftover()`, a constant, and the gradient is
        that of the full map; where some are above, neither is exact.
        """
        difference = upsample(self.student - self.target.map, self.target.teacher_grid)
        return F.smooth_l1_loss(difference, torch.zeros_like(difference))

    def leftover(self) -> Tensor:
        """|t - Up|^2 per element of the full teacher maps, ()."""
        return (self.target.leftover / self.target.elements).mean()


def compare(student: Tensor, target: Target) -> MapPair | ProjectedPair:
    """Put a student map (B, C, h, w) and a target on one grid, as the published loss does.

    Only heights are compared: a taller teacher map stays and the student is resized to it; otherwise, where shapes
    differ, the teacher is resized to the student, even where that narrows it. A projected target stays on the
    student's grid. Call it with autocast off (see `full_precision`), or its products run in half precision.
    """
    if isinstance(target, ProjectedTarget):
        dtype = _wide(student, target.map, target.leftover)
        return ProjectedPair(student.to(dtype), target.to(target.map.device, dtype))
    dtype = _wide(student, target)
    student, target = student.to(dtype), target.to(dtype)
    grid, own = (target.shape[-2], target.shape[-1]), (student.shape[-2], student.shape[-1])
    if is_projectable(grid, own):
        return MapPair(bilinear_resize(student, grid), target)
    return MapPair(student, bilinear_resize(target, own))


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves matrix products on `tensor`'s device as they are."""
    return torch.autocast(tensor.device.type, enabled=False)


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _cosine(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """From inner products and squared norms, all of one shape: the published code's order, one root of both norms."""
    smallest = SMALLEST_NORM**2
    root: Tensor = _Root.apply(left.clamp(min=smallest) * right.clamp(min=smallest))
    return product / root


class _Root(torch.autograd.Function):
    """A square root rounded to the nearest number on every machine.

    On some CPUs float32's own, taken by a vector library, is off in the last place, and the gradients of two machines
    then differ by 2e-7 of their largest. The backward divides by the root as rounded, as that of `sqrt` does.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, squared: Tensor) -> Tensor:
        exact = squared if squared.device.type == "mps" else squared.double()
        root = exact.sqrt().to(squared.dtype)
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        halved: Tensor = gradients[0] / (2 * root)
        return halved
