"""Stage 2: train the student against cached teachers, with no teacher forward."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import nn

from pipeline.cache.reader.batches import ReadingOrder
from pipeline.cluster import resolve_device
from pipeline.data.distillation import CachedBatches, DistillBatch
from pipeline.data.loading import PhotometricJitter
from pipeline.distill.targets import TargetSource, mean_similarities, open_held_out, open_targets
from pipeline.progress import Update
from pipeline.settings import Frozen, parse_settings
from pipeline.train.config import TrainingConfig, recipe_and_rest
from pipeline.train.devices import check_trackers, finish_trackers, make_accelerator, start_trackers
from pipeline.train.distillation import LossRecipe, StudentRecipe, save_standardisers, standardisers, student_config
from pipeline.train.figures import draw_distillation
from pipeline.train.loop import Fit
from pipeline.train.protocols import FitResult, Hooks, Step, StepResult
from pipeline.train.run import ANEW, Start, open_run
from pipeline.train.saver import load_weights, save_weights
from sak.errors import UsageError
from sak.losses.distillation import DistillationLoss
from sak.losses.standardise import Standardisation
from sak.student.build import build_student

# The recipe of a distillation: the student, the loss, reading and training; all that is not in the cache.

EPOCHS = 30


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


def distill(
    config: DistillConfig,
    out: Path,
    *,
    start: Start = ANEW,
    trackers: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Update | None = None,
) -> FitResult:
    """Train the student against the cache; returns how the run ended. Running it on several processes is torchrun's."""
    check_trackers(trackers)
    accelerator = make_accelerator(config.recipe.training, device=config.device, trackers=trackers, folder=out)
    targets = open_targets(config, accelerator.device)
    recipe = config.recipe
    recipe.loss.check_teachers(list(targets.taught_by))
    check_token_cosine(recipe.loss, targets)
    student = build_student(
        student_config(recipe.student, targets.taught_by, targets.cache.view_policy.size), seed=recipe.training.seed
    )
    batches = make_batches(targets, recipe, accelerator)
    recipe.training.learning_rates(batches.steps_per_epoch)  # what does not fit is refused before a directory is made
    scales = standardisers(recipe.loss.standardise, targets.cache, list(targets.taught_by), accelerator.device)
    evaluate = held_out_similarity(config, targets, accelerator, scales)
    settings, reads = config.model_dump(mode="json"), targets.describe()
    run = open_run(out, settings, reads, accelerator, start)
    hooks = Hooks(
        save_model=save_weights,
        load_model=load_weights,
        evaluate=evaluate,
        best="rep_sim",
        best_is_lower=False,
        evaluate_first=True,
        progress=progress,
        say=say,
        remedy=batches.remedy,
        saved=partial(draw_distillation, run),
    )
    loss = DistillationLoss(**recipe.loss.model_dump(exclude={"standardise"}), standardisers=scales)
    step = distill_step(loss)
    fit = Fit(student, batches, step, config=recipe.training, run=run, hooks=hooks, accelerator=accelerator)
    if start.resume:
        fit.resume()
    if accelerator.is_main_process:
        save_standardisers(scales, run.root)
        teachers = {name: recipe.to_json() for name, recipe in targets.recipes.items()}
        student_is = student.config.resolved().to_json()
        run.describe(stage="distill", reads=reads, student=student_is, teachers=teachers)
    start_trackers(accelerator, "sak-distill", settings)
    result = fit()
    if accelerator.is_main_process:
        run.conclude(step=result.step, stopped=result.stopped, bytes_read=targets.cache.bytes_read)
        draw_distillation(run)
    finish_trackers(accelerator)
    return result


def distill_step(loss: DistillationLoss) -> Step[DistillBatch]:
    """Images through the student, its answer to each teacher compared with that teacher's targets."""

    def step(model: nn.Module, batch: DistillBatch) -> StepResult:
        # Live teachers run here: their memory is free again before the student's activations fill it.
        targets = batch.targets
        output = model(batch.inputs, tasks=())
        losses = loss(output.teachers, targets)
        return StepResult(losses.total, losses.by_level())

    return step


def check_token_cosine(loss: LossRecipe, targets: TargetSource) -> None:
    """UsageError where a cosine by token is asked for of a column that holds projections."""
    if loss.cosine == "map" or loss.kind == "l2":
        return
    live = targets.live.teachers if targets.live is not None else {}
    for name, info in targets.cache.teachers.items():
        if name not in live and info.reduction == "projection":
            raise UsageError(
                f"loss.cosine token: {name} is cached as a projection, which holds the cosine of a whole map alone; "
                "set loss.cosine=map, or extract it on its native grid"
            )


def make_batches(targets: TargetSource, recipe: DistillRecipe, accelerator: Accelerator) -> CachedBatches:
    """This process's part of every batch of the cache."""
    order = ReadingOrder(
        recipe.training.batch_size,
        seed=recipe.training.seed,
        block=targets.cache.block,
        window=recipe.data.window,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    if order.part_size % recipe.training.accumulate:
        raise UsageError(
            f"{order.part_size} images a process do not divide into {recipe.training.accumulate} accumulated parts"
        )
    return CachedBatches(
        targets.cache,
        order,
        accelerator.device,
        recipe.data.workers,
        recipe.data.jitter(),
        targets.live,
        targets.read_features,
        targets.fresh_views,
    )


def held_out_similarity(
    config: DistillConfig,
    targets: TargetSource,
    accelerator: Accelerator,
    scales: Mapping[str, Sequence[Standardisation]],
) -> Callable[[nn.Module, int], Mapping[str, float]] | None:
    """rep_sim on the held-out cache; None where none was named."""
    if config.val_cache is None:
        return None
    held_out = open_held_out(config.val_cache, config.val_data, targets)
    return partial(mean_similarities, held_out, accelerator, config.recipe.data.workers, standardised=scales)
