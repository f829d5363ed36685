"""What a distillation is asked for: its recipe (student, loss, reading, training) and its configuration of caches."""

from typing import Any, ClassVar

from pydantic import Field

from pipeline.cluster import resolve_device
from pipeline.data.loading import PhotometricJitter
from pipeline.settings import Frozen, parse_settings, recipe_and_rest
from pipeline.train.config import TrainingConfig
from pipeline.train.distillation import LossRecipe, Standardise, StudentRecipe


class DistillLossRecipe(LossRecipe):
    """The loss of a distillation; its targets may be standardised first, with statistics from the cache.

    `mean-var`: mean 0 and variance 1 for every channel; `phi-s`: PCA-Hadamard isotropic, which projections allow too.
    """

    standardise: Standardise = "none"


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
        strengths = (self.brightness, self.contrast, self.saturation)
        return PhotometricJitter(*strengths) if any(strengths) else None


class DistillTraining(TrainingConfig):
    """The loop of a distillation, by default as long as the paper's."""

    default_length: ClassVar[dict[str, int]] = {"epochs": 30}


class DistillRecipe(Frozen):
    """All of a distillation that is not in the cache; by default the paper's, for its B student."""

    student: StudentRecipe = StudentRecipe()
    loss: DistillLossRecipe = DistillLossRecipe()
    data: DataRecipe = DataRecipe()
    training: DistillTraining = DistillTraining()


class DistillConfig(Frozen):
    """What a run was asked for; written whole into its `config.yaml`.

    `spec` refuses columns made by another cache spec, and describes live teachers that have no column. `online` runs
    every teacher live, `teachers_online` some of them; the views are the cache's either way, but with `fresh_views`,
    which draws new ones each epoch where all teachers run live. `views` reads the first so many of the cache's. `data`
    and `val_data` are where the images of `cache` and `val_cache` are now, if not where they were extracted from.
    """

    cache: str
    recipe: DistillRecipe = Field(default_factory=DistillRecipe)
    teachers: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None
    spec: str | None = None
    data: str | None = None
    val_cache: str | None = None
    val_data: str | None = None
    online: bool = False
    teachers_online: tuple[str, ...] = ()
    allow_partial: bool = False
    views: int | None = Field(default=None, ge=1)
    fresh_views: bool = False
    device: str = "cuda"


def distill_config(**flags: Any) -> DistillConfig:
    """What the flags of `sak-cli distill` ask for, by their names; those of the recipe go over its file."""
    recipe, rest = recipe_and_rest(DistillRecipe, flags)
    device = resolve_device(rest.get("device", "cuda"))
    return parse_settings(DistillConfig, {**rest, "recipe": recipe, "device": device}, "distill")
