"""What distillation and fine-tuning share: recipes of the student and its loss, and the student for its teachers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings import Frozen
from pipeline.train.standardise import Scales
from sak.errors import UsageError, nearest
from sak.features import default_levels
from sak.losses.distillation import DistillationLoss
from sak.student.config import StudentConfig, size_from_json
from sak.student.sizes import stem_size


class StudentRecipe(Frozen):
    """The student; teachers, their widths and the image size come from the cache.

    `stem` is a timm ViT or Swin, or a size (`width`, `depth`, `heads`; a Swin's `embed`, `depths`, `heads`, `window`),
    `weights` where it starts from: `pretrained`, a file
    or `random:SEED`. `adapters: false` is the many-to-one student, which has linear aligners alone. `aligners` are a
    linear map per teacher and level behind the paths; null: where a teacher's width is another, as in the paper.
    """

    stem: str | dict[str, int | bool | tuple[int, ...]] = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    weights: str = "pretrained"
    adapters: bool = True
    down_ratio: int = Field(default=4, ge=1)
    aligners: bool | None = None
    freeze: Literal["none", "stem"] = "none"
    gradient_checkpointing: bool = False


class LossRecipe(Frozen):
    """The distillation loss; `weights` by teacher, 1 where not named."""

    kind: Literal["cos+l1", "cos", "l2"] = "cos+l1"
    cosine: Literal["map", "token"] = "map"
    cosine_weight: float = Field(default=0.9, ge=0)
    l1_weight: float = Field(default=0.1, ge=0)
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossRecipe":
        if self.kind == "cos+l1" and self.cosine_weight == self.l1_weight == 0:
            raise ValueError("cosine_weight and l1_weight are both 0: nothing would be learnt")
        return self

    def make(self, scales: Scales) -> DistillationLoss:
        """The loss, without the factor and options that a stage's own recipe adds; `scales` standardise the targets."""
        return DistillationLoss(**self.model_dump(include=set(LossRecipe.model_fields)), standardisers=scales)

    def check_teachers(self, names: Collection[str]) -> None:
        """UsageError for a weight of a teacher that is not among those distilled, or where all of them weigh 0."""
        for name in self.weights:
            if name not in names:
                raise UsageError(f"loss weights: {name!r} is no teacher of this run{nearest(name, names)}")
        if names and all(self.weights.get(name, 1.0) == 0 for name in names):
            raise UsageError("loss weights: every teacher's is 0, nothing would be learnt; leave one out")


@dataclass(frozen=True)
class TeacherLevels:
    """What the student must know of a teacher: its width, all levels that it has, and those wanted of them."""

    width: int
    levels: tuple[int, ...]
    wanted: tuple[int, ...]


def student_config(
    recipe: StudentRecipe, teachers: Mapping[str, TeacherLevels], image_size: tuple[int, int]
) -> StudentConfig:
    """The student that answers to these teachers.

    Levels are paired by position: the third of an L teacher's four (block 18) is the third of a B student's (block 9).
    """
    stem = size_from_json(recipe.stem) if isinstance(recipe.stem, dict) else recipe.stem
    depth = stem_size(stem).depth
    return StudentConfig(
        image_size=image_size,
        stem=stem,
        weights=recipe.weights,
        teachers={name: teacher.width for name, teacher in teachers.items()},
        levels=_paired_levels(teachers, depth),
        adapters=recipe.adapters,
        aligners=True if recipe.aligners is None and not recipe.adapters else recipe.aligners,
        fusion="mor" if recipe.adapters else "none",
        down_ratio=recipe.down_ratio,
        freeze=recipe.freeze,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def _paired_levels(teachers: Mapping[str, TeacherLevels], depth: int) -> tuple[int, ...]:
    positions = {
        name: (len(teacher.levels), tuple(teacher.levels.index(level) for level in teacher.wanted))
        for name, teacher in teachers.items()
    }
    first, (count, chosen) = next(iter(positions.items()))
    for name, teacher in teachers.items():
        if positions[name] != (count, chosen):
            raise UsageError(
                f"{name} is wanted at levels {teacher.wanted} of {teacher.levels}, {first} at "
                f"{teachers[first].wanted} of {teachers[first].levels}: they are paired by position, name --levels"
            )
    if count > depth:
        raise UsageError(f"the teachers have {count} levels, a student of {depth} blocks has not as many")
    own = default_levels(depth) if count == 4 else tuple(depth * (index + 1) // count for index in range(count))
    return tuple(own[position] for position in chosen)
