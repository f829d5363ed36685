"""The distillation loss (paper, equation 5) and the representation similarity of Table 3."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.comparison import MapPair, ProjectedPair, compare, full_precision
from sak.losses.standardise import Standardiser
from sak.losses.targets import Target, Targets, check_levels, check_teachers

Kind = Literal["cos+l1", "cos", "l2"]
Cosine = Literal["map", "token"]

KINDS: tuple[Kind, ...] = ("cos+l1", "cos", "l2")
COSINES: tuple[Cosine, ...] = ("map", "token")


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
    standardisers: Mapping[str, tuple[Standardiser, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown kinds and cosines."""
        if self.kind not in KINDS:
            raise UsageError(f"no distillation loss {self.kind!r}; known: {', '.join(KINDS)}")
        if self.cosine not in COSINES:
            raise UsageError(f"no cosine {self.cosine!r}; known: {', '.join(COSINES)}")

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

    def _level(self, map_: Tensor, target: Target, standardiser: Standardiser | None, weight: float) -> LevelLoss:
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
