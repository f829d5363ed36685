"""The recipe of a distillation: the student, the loss, reading and training; all that is not in the cache."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.data.view_images import PhotometricJitter
from pipeline.settings import Frozen
from pipeline.training.config import TrainingConfig
from sak.errors import UsageError, nearest
from sak.features import default_levels
from sak.student.config import StudentConfig, size_from_json
from sak.student.sizes import stem_size

EPOCHS = 30


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

    def check_teachers(self, names: Collection[str]) -> None:
        """UsageError for a weight of a teacher that is not among those distilled, or where all of them weigh 0."""
        for name in self.weights:
            if name not in names:
                raise UsageError(f"loss weights: {name!r} is no teacher of this run{nearest(name, names)}")
        if names and all(self.weights.get(name, 1.0) == 0 for name in names):
            raise UsageError("loss weights: every teacher's is 0, nothing would be learnt; leave one out")


class DistillLossRecipe(LossRecipe):
    """The loss of a distillation; its targets may be standardised first, with statistics from the cache.

    `mean-var`: mean 0 and variance 1 for every channel; `phi-s`: PCA-Hadamard isotropic, which projections allow too.
    """

    standardise: Literal["none", "mean-var", "phi-s"] = "none"


class DataRecipe(Frozen):
    """Reading: `window` blocks are open at once, `workers` processes decode images.

    `brightness`, `contrast` and `saturation` jitter the student's input alone; the targets stay those of the view.
    """

    window: int = Field(default=16, ge=1)
    workers: int = Field(default=4, ge=0)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)

    def jitter(self) -> PhotometricJitter | None:
        """None where nothing changes."""
        wanted = (self.brightness, self.contrast, self.saturation)
        return PhotometricJitter(*wanted) if any(wanted) else None


class DistillRecipe(Frozen):
    """All of a distillation that is not in the cache; by default the paper's, for its B student."""

    student: StudentRecipe = StudentRecipe()
    loss: DistillLossRecipe = DistillLossRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingConfig = TrainingConfig(epochs=EPOCHS)

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        """A recipe that says nothing of its length takes the paper's."""
        training = values.get("training") if isinstance(values, dict) else None
        if not isinstance(training, dict) or any(training.get(name) is not None for name in ("epochs", "steps")):
            return values
        return {**values, "training": {**training, "epochs": EPOCHS}}


@dataclass(frozen=True)
class TaughtBy:
    """What the student must know of a teacher: its width, all levels it is known by, and those wanted."""

    width: int
    levels: tuple[int, ...]
    wanted: tuple[int, ...]


def student_config(
    recipe: StudentRecipe, teachers: Mapping[str, TaughtBy], image_size: tuple[int, int]
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


def _paired_levels(teachers: Mapping[str, TaughtBy], depth: int) -> tuple[int, ...]:
    places = {
        name: (len(teacher.levels), tuple(teacher.levels.index(level) for level in teacher.wanted))
        for name, teacher in teachers.items()
    }
    (first, (count, chosen)), *others = places.items()
    for name, place in others:
        if place != (count, chosen):
            raise UsageError(
                f"{name} is wanted at levels {teachers[name].wanted} of {teachers[name].levels}, {first} at "
                f"{teachers[first].wanted} of {teachers[first].levels}: they are paired by position, name --levels"
            )
    if count > depth:
        raise UsageError(f"the teachers have {count} levels, a student of {depth} blocks has not as many")
    own = default_levels(depth) if count == 4 else tuple(depth * (place + 1) // count for place in range(count))
    return tuple(own[place] for place in chosen)
