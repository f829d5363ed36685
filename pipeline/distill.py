"""Stage 2: train the student against cached teachers, with no teacher forward."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from pydantic import Field
from torch import nn

from pipeline.cache.cache import FeatureCache
from pipeline.cache.order import ReadingOrder
from pipeline.data.distillation import BatchSlice, CachedBatches, DistillBatch, normalise
from pipeline.data.view_images import PhotometricJitter
from pipeline.progress import Update
from pipeline.training.config import Frozen, TrainingConfig
from pipeline.training.figures import draw_distillation
from pipeline.training.loop import Batch, Fit, FitResult, Hooks, Step, StepResult, make_accelerator
from pipeline.training.rep_sim import mean_similarities
from pipeline.training.run import RunDirectory
from sak.checkpoints import load_student, save_student
from sak.errors import UsageError
from sak.features import default_levels
from sak.losses.distillation import DistillationLoss
from sak.student import Student, StudentConfig, build_student
from sak.student.sizes import StemSize, stem_size


class StudentRecipe(Frozen):
    """The student; teachers, their widths and the image size come from the cache.

    `stem` is a timm ViT or a size (`width`, `depth`, `heads`). `adapters: false` is the many-to-one student.
    """

    stem: str | dict[str, int] = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    weights: str = "pretrained"
    adapters: bool = True
    down_ratio: int = Field(default=4, ge=1)
    freeze: Literal["none", "stem"] = "none"
    gradient_checkpointing: bool = False


class LossRecipe(Frozen):
    """The distillation loss; `weights` by teacher."""

    kind: Literal["cos+l1", "cos", "l2"] = "cos+l1"
    cosine: Literal["map", "token"] = "map"
    cosine_weight: float = 0.9
    l1_weight: float = 0.1
    weights: dict[str, float] = Field(default_factory=dict)


class DataRecipe(Frozen):
    """Reading: `window` blocks are open at once, `workers` processes decode images; `jitter` is the student's alone."""

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
    """All of a distillation that is not in the cache."""

    student: StudentRecipe = StudentRecipe()
    loss: LossRecipe = LossRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingConfig = TrainingConfig(epochs=30)


class DistillConfig(Frozen):
    """What a run was asked for; written whole into its `config.yaml`."""

    cache: str
    out: str
    recipe: DistillRecipe
    teachers: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None
    val_cache: str | None = None
    allow_partial: bool = False
    device: str = "cuda"


def distill(
    config: DistillConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: Update | None = None,
) -> FitResult:
    """Train the student against the cache; returns how the run ended. Running it on several processes is torchrun's."""
    cache = FeatureCache.open(config.cache, config.teachers, config.levels, allow_partial=config.allow_partial)
    held_out = FeatureCache.open(config.val_cache, list(cache.teachers), config.levels) if config.val_cache else None
    accelerator = make_accelerator(config.recipe.training, device=config.device)
    student = build_student(student_config(config.recipe.student, cache), seed=config.recipe.training.seed)
    batches = cached_batches(cache, config.recipe, accelerator)
    run = open_run(config, accelerator, resume=resume, overwrite=overwrite, force=force)
    if accelerator.is_main_process:
        run.describe(stage="distill", reads=cache.describe(), student=student.config.resolved().to_json())
    hooks = Hooks(
        save_model=save_weights,
        load_model=load_weights,
        evaluate=None
        if held_out is None
        else partial(mean_similarities, held_out, accelerator, config.recipe.data.workers),
        best="rep_sim",
        best_is_lower=False,
        progress=progress,
    )
    step = distill_step(DistillationLoss(**config.recipe.loss.model_dump()))
    fit = Fit(student, batches, step, config=config.recipe.training, run=run, hooks=hooks, accelerator=accelerator)
    if resume:
        fit.resume()
    result = fit()
    if accelerator.is_main_process:
        draw_distillation(run)
    return result


def distill_step(loss: DistillationLoss) -> Step:
    """Images through the student, its answer to each teacher compared with that teacher's targets."""

    def step(model: nn.Module, batch: Batch) -> StepResult:
        if not isinstance(batch, DistillBatch | BatchSlice):
            raise TypeError(f"a distillation batch, not {type(batch).__name__}")
        output = model(normalise(batch.images), tasks=())
        losses = loss(output.teachers, batch.targets)
        return StepResult(losses.total, losses.by_level())

    return step


def student_config(recipe: StudentRecipe, cache: FeatureCache) -> StudentConfig:
    """The student that answers to the cache's teachers at the cache's levels.

    Levels are paired by position: the third of an L teacher's four (block 18) is the third of a B student's (block 9).
    """
    stem = StemSize(**recipe.stem) if isinstance(recipe.stem, dict) else recipe.stem
    depth = stem.depth if isinstance(stem, StemSize) else stem_size(stem).depth
    return StudentConfig(
        image_size=cache.view_policy.size,
        stem=stem,
        weights=recipe.weights,
        teachers={name: info.width for name, info in cache.teachers.items()},
        levels=_paired_levels(cache, depth),
        adapters=recipe.adapters,
        aligners=None if recipe.adapters else True,
        fusion="mor" if recipe.adapters else "none",
        down_ratio=recipe.down_ratio,
        freeze=recipe.freeze,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def _paired_levels(cache: FeatureCache, depth: int) -> tuple[int, ...]:
    places = set()
    for name, reader in cache.readers.items():
        all_levels = tuple(reader.columns[0].manifest.document["levels"])
        places.add((len(all_levels), tuple(all_levels.index(level) for level in reader.levels)))
        if len(places) > 1:
            raise UsageError(
                f"{cache.cache}: {name} has other levels than the teachers before it; name --levels for all"
            )
    count, chosen = places.pop()
    own = default_levels(depth) if count == 4 else tuple(depth * (place + 1) // count for place in range(count))
    return tuple(own[place] for place in chosen)


def cached_batches(cache: FeatureCache, recipe: DistillRecipe, accelerator: Accelerator) -> CachedBatches:
    """This process's part of every batch of the cache."""
    order = ReadingOrder(
        recipe.training.batch_size,
        seed=recipe.training.seed,
        block=cache.block,
        window=recipe.data.window,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    if order.part_size % recipe.training.accumulate:
        raise UsageError(
            f"{order.part_size} images a process do not divide into {recipe.training.accumulate} accumulated parts"
        )
    return CachedBatches(cache, order, accelerator.device, recipe.data.workers, recipe.data.jitter())


def open_run(
    config: DistillConfig, accelerator: Accelerator, *, resume: bool, overwrite: bool, force: bool
) -> RunDirectory:
    """The run's directory, made or checked by the main process before any other uses it."""
    settings = plain_settings(config)
    run = RunDirectory(Path(config.out))
    if accelerator.is_main_process:
        run = (
            RunDirectory.resume(run.root, settings, force=force)
            if resume
            else RunDirectory.create(run.root, settings, overwrite=overwrite)
        )
    accelerator.wait_for_everyone()
    return run


def plain_settings(config: DistillConfig) -> Mapping[str, Any]:
    """The configuration in YAML's own types."""
    return config.model_dump(mode="json")


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a student's checkpoint."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    save_student(model, folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a student that is there."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    saved = load_student(folder)
    model.load_state_dict(saved.state_dict())


def relocated(cache: FeatureCache, data: str) -> FeatureCache:
    """The cache with its images read from a copy of the data at `data`."""
    indices = {name: index.relocated(data) for name, index in cache.universe.indices.items()}
    return replace(cache, universe=replace(cache.universe, indices=indices))
