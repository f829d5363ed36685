"""The distillation loss (paper, equation 5), summed over teachers and levels, and Table 3's representation similarity.

All values are in float32 or better whatever the inputs and autocast; float64 stays float64. Sums run over the grid on
which the published loss compares, the teacher's where it is taller, also where only its projection is at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sak.errors import UsageError
from sak.features import FeatureMaps, bilinear_resize
from sak.losses.projection import (
    ProjectedTarget,
    Target,
    Targets,
    check_levels,
    check_teachers,
    gram,
    is_projectable,
    upsample,
)
from sak.losses.standardise import Standardisation

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


Kind = Literal["cos+l1", "cos", "l2"]
Cosine = Literal["map", "token"]


@dataclass(frozen=True)
class LevelLoss:
    """One teacher's loss at one level; scalars, before weights unless said, zero where the kind has no such part.

    Attributes:
        cosine: 1 - cosine, the mean over images.
        smooth_l1: the mean over elements; against the projection where the target is one.
        squared: squared error, the mean over elements.
        leftover: energy per element that a projected target has lost; smooth_l1 is too low by about half of it.
        total: the parts by the kind's weights, times the teacher's weight.
    """

    cosine: Tensor
    smooth_l1: Tensor
    squared: Tensor
    leftover: Tensor
    total: Tensor


@dataclass(frozen=True)
class DistillationLosses:
    """The total, the sum over all teachers and levels, and its parts: teacher -> one `LevelLoss` per level.

    `names` holds each teacher's level names, which are those of its own blocks.
    """

    total: Tensor
    teachers: dict[str, tuple[LevelLoss, ...]]
    names: dict[str, tuple[str, ...]]

    def by_level(self) -> dict[str, Tensor]:
        """`<teacher>/level<block>` -> total, detached, for logs."""
        return {
            f"{teacher}/{name}": level.total.detach()
            for teacher, levels in self.teachers.items()
            for name, level in zip(self.names[teacher], levels, strict=True)
        }


@dataclass(frozen=True)
class DistillationLoss:
    """How student maps are compared with their teachers' maps.

    Per teacher and level `cos+l1` is 0.9 * (1 - cos) + 0.1 * smooth-L1; `cos` is 1 - cos; `l2` the mean squared error.
    The cosine is taken over the whole flattened map (published code), not per position, unless `cosine` is `token`.

    Attributes:
        kind: which loss.
        cosine: over what a cosine is taken.
        cosine_weight: of the cosine part in `cos+l1`.
        l1_weight: of the smooth-L1 part in `cos+l1`.
        weights: teacher -> weight of its levels; 1 where not named.
        standardisers: teacher -> one per level, applied to the targets (not to the student, who learns them); a
            teacher not named has its raw features as targets.
    """

    kind: Kind = "cos+l1"
    cosine: Cosine = "map"
    cosine_weight: float = 0.9
    l1_weight: float = 0.1
    weights: Mapping[str, float] = field(default_factory=dict)
    standardisers: Mapping[str, tuple[Standardisation, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown kinds and cosines."""
        choices = (("distillation loss", self.kind, get_args(Kind)), ("cosine", self.cosine, get_args(Cosine)))
        for what, chosen, known in choices:
            if chosen not in known:
                raise UsageError(f"no {what} {chosen!r}; known: {', '.join(known)}")

    def __call__(self, student: Mapping[str, FeatureMaps], targets: Mapping[str, Targets]) -> DistillationLosses:
        """Compare the student's maps for each teacher with that teacher's; levels are paired in order.

        Maps are (B, C, H, W) of any float dtype; the loss is float32, float64 where either side is. Targets may be
        projections onto the student's grid (`ProjectedTarget`). UsageError where teachers, levels, channels or
        projected grids do not fit, or for token cosine on a projection.
        """
        check_teachers(student, targets)
        teachers = {teacher: self._teacher(teacher, student[teacher], maps) for teacher, maps in targets.items()}
        totals = [level.total for levels in teachers.values() for level in levels]
        names = {teacher: maps.names for teacher, maps in targets.items()}
        return DistillationLosses(torch.stack(totals).sum(), teachers, names)

    def _teacher(self, teacher: str, student: FeatureMaps, targets: Targets) -> tuple[LevelLoss, ...]:
        weight = self.weights.get(teacher, 1.0)
        standardisers = self.standardisers.get(teacher, (None,) * len(targets))
        if len(standardisers) != len(targets):
            raise UsageError(f"{teacher}: {len(standardisers)} standardisers for {len(targets)} levels; give one each")
        return tuple(
            self._level(map_, target, standardiser, weight)
            for map_, target, standardiser in zip(student, targets, standardisers, strict=True)
        )

    def _level(self, map_: Tensor, target: Target, standardiser: Standardisation | None, weight: float) -> LevelLoss:
        with full_precision(map_):
            pair = compare(map_, target if standardiser is None else standardiser(target))
            zero = pair.student.new_zeros(())
            if self.kind == "l2":
                squared = pair.squared_error()
                return LevelLoss(zero, zero, squared, pair.leftover(), weight * squared)
            distance = 1 - self._cosine_of(pair).mean()
            if self.kind == "cos":
                return LevelLoss(distance, zero, zero, pair.leftover(), weight * distance)
            smooth = pair.smooth_l1()
            total = weight * (self.cosine_weight * distance + self.l1_weight * smooth)
            return LevelLoss(distance, smooth, zero, pair.leftover(), total)

    def _cosine_of(self, pair: MapPair | ProjectedPair) -> Tensor:
        return pair.map_cosine() if self.cosine == "map" else pair.token_cosine()


@torch.no_grad()
def image_similarities(student: FeatureMaps, targets: Targets) -> Tensor:
    """Map cosine of every image and level with one teacher, after the loss's own resize, (B, levels)."""
    check_levels("rep_sim", student, targets)
    with full_precision(student.maps[0]):
        pairs = (compare(map_, target) for map_, target in zip(student, targets, strict=True))
        return torch.stack([pair.map_cosine() for pair in pairs], dim=1)


def rep_sim(student: FeatureMaps, targets: Targets) -> Tensor:
    """Representation similarity with one teacher (Table 3's row): the mean map cosine over the images, (levels,).

    The paper does not define it; ours is the cosine of the distillation loss, whatever loss was trained with.
    """
    return image_similarities(student, targets).mean(0)
