"""What a student is compared with: full maps, projections of them, or a mixture, one per level."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.losses.projection import ProjectedTarget

Target = Tensor | ProjectedTarget


@dataclass(frozen=True)
class TargetMaps:
    """One teacher's levels as maps (B, C, H, W) or as their projections, in the order of its blocks.

    `FeatureMaps` serves as well where every level is a full map: the losses take either.
    """

    levels: tuple[int, ...]
    maps: tuple[Target, ...]

    def __post_init__(self) -> None:
        """Refuse levels and maps that do not belong together."""
        if len(self.levels) != len(self.maps):
            raise ValueError(f"{len(self.levels)} levels {self.levels} but {len(self.maps)} maps")

    def __iter__(self) -> Iterator[Target]:
        """The targets, shallowest first."""
        return iter(self.maps)

    def __len__(self) -> int:
        """How many levels."""
        return len(self.levels)

    @property
    def names(self) -> tuple[str, ...]:
        """Level names as losses and reports write them: `level3` is block 3."""
        return tuple(f"level{level}" for level in self.levels)


Targets = FeatureMaps | TargetMaps


def check_teachers(student: Mapping[str, FeatureMaps], targets: Mapping[str, Targets]) -> None:
    """UsageError unless both hold the same teachers with as many levels, images and channels each."""
    if set(student) != set(targets) or not targets:
        raise UsageError(
            f"the student answers to teachers {sorted(student)} but there are targets of {sorted(targets)}; "
            "name the same teachers for both"
        )
    for teacher, maps in student.items():
        check_levels(teacher, maps, targets[teacher])


def check_levels(teacher: str, student: FeatureMaps, targets: Targets) -> None:
    """UsageError unless both have as many levels, and each level as many images and channels."""
    if len(student) != len(targets):
        raise UsageError(
            f"{teacher}: the student has levels {student.levels} but the targets {targets.levels}; "
            "they are paired in order, so name as many for both"
        )
    for name, map_, target in zip(targets.names, student, targets, strict=True):
        full = target.map if isinstance(target, ProjectedTarget) else target
        if map_.shape[:2] != full.shape[:2]:
            raise UsageError(
                f"{teacher} {name}: the student's map is {tuple(map_.shape)} and the target {tuple(full.shape)} "
                "(images, channels, height, width); give the student aligners to the teacher's width"
            )
        if isinstance(target, ProjectedTarget) and map_.shape != full.shape:
            raise UsageError(
                f"{teacher} {name}: the target was projected onto a {full.shape[2]}x{full.shape[3]} grid but the "
                f"student's is {map_.shape[2]}x{map_.shape[3]}; extract for this student, or with grid: native"
            )
