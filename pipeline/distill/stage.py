"""Stage 2: train the student against cached teachers, with no teacher forward."""

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from pipeline.cache.reader.batches import ReadingOrder
from pipeline.data.distillation import CachedBatches, DistillBatch
from pipeline.distill.recipe import DistillConfig, DistillRecipe, distill_config
from pipeline.distill.targets import TargetSource, mean_similarities, open_held_out, open_targets
from pipeline.pictures.charts import draw_distillation
from pipeline.train.devices import finish_trackers, make_accelerator
from pipeline.train.distillation import LossRecipe, Scales, save_standardisers, standardisers, student_config
from pipeline.train.loop import Fit
from pipeline.train.protocols import Evaluate, FitResult, Hooks, Step, StepResult
from pipeline.train.resume import load_weights, save_weights
from pipeline.train.run import RunDirectory, RunOptions, open_run
from sak.errors import UsageError
from sak.losses.distillation import DistillationLoss
from sak.student.build import build_student
from sak.student.student import Student

__all__ = ["DistillConfig", "DistillRecipe", "distill", "distill_config", "distill_step", "make_batches"]


def distill(config: DistillConfig, out: Path, options: RunOptions = RunOptions()) -> FitResult:
    """Train the student against the cache; returns how the run ended. Running it on several ranks is torchrun's."""
    recipe, settings = config.recipe, config.model_dump(mode="json")
    accelerator = make_accelerator(recipe.training, device=config.device, trackers=options.trackers, folder=out)
    targets = open_targets(config, accelerator.device)
    reads = targets.describe()
    student = make_student(recipe, targets)
    batches = make_batches(targets, recipe, accelerator)
    recipe.training.learning_rates(batches.steps_per_epoch)  # what does not fit is refused before a directory is made
    scales = standardisers(recipe.loss.standardise, targets.cache, list(targets.teachers), accelerator.device)
    evaluate = held_out_similarity(config, targets, accelerator, scales)
    run = open_run(out, settings, reads, accelerator, options.start)
    hooks = make_hooks(run, batches, evaluate, options)
    step = distill_step(recipe.loss.make(scales))
    fit = Fit(student, batches, step, config=recipe.training, run=run, hooks=hooks, accelerator=accelerator)
    teachers = {name: teacher.to_json() for name, teacher in targets.recipes.items()}
    fit.begin(
        options, settings, stage="distill", reads=reads, student=student.config.resolved().to_json(), teachers=teachers
    )
    if accelerator.is_main_process:
        save_standardisers(scales, run.root)
    result = fit()
    if accelerator.is_main_process:
        run.conclude(step=result.step, stopped=result.stopped, bytes_read=targets.cache.bytes_read)
        draw_distillation(run)
    finish_trackers(accelerator)
    return result


def make_hooks(run: RunDirectory, batches: CachedBatches, evaluate: Evaluate | None, options: RunOptions) -> Hooks:
    """What the loop saves, measures and reports; the best checkpoint is the one most like its teachers."""
    return Hooks(
        save_model=save_weights,
        load_model=load_weights,
        evaluate=evaluate,
        best="rep_sim",
        best_is_lower=False,
        evaluate_first=True,
        progress=options.progress,
        say=options.say,
        remedy=batches.remedy,
        saved=partial(draw_distillation, run),
    )


def make_student(recipe: DistillRecipe, targets: TargetSource) -> Student:
    """The student that answers to these teachers; UsageError where the loss cannot be had of them."""
    recipe.loss.check_teachers(list(targets.teachers))
    check_token_cosine(recipe.loss, targets)
    config = student_config(recipe.student, targets.teachers, targets.cache.view_policy.size)
    return build_student(config, seed=recipe.training.seed)


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
    """This rank's part of every batch of the cache."""
    order = ReadingOrder(
        recipe.training.batch_size,
        seed=recipe.training.seed,
        block=targets.cache.block,
        window=recipe.data.window,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    recipe.training.check_part(order.part_size)
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


def distill_step(loss: DistillationLoss) -> Step[DistillBatch]:
    """Images through the student, its answer to each teacher compared with that teacher's targets."""

    def step(model: nn.Module, batch: DistillBatch) -> StepResult:
        # Live teachers run here: their memory is free again before the student's activations fill it.
        targets = batch.targets
        output = model(batch.inputs, tasks=())
        losses = loss(output.teachers, targets)
        return StepResult(losses.total, losses.by_level())

    return step


def held_out_similarity(
    config: DistillConfig, targets: TargetSource, accelerator: Accelerator, scales: Scales
) -> Evaluate | None:
    """rep_sim on the held-out cache; None where none was named."""
    if config.val_cache is None:
        return None
    held_out = open_held_out(config.val_cache, config.val_data, targets)
    return partial(mean_similarities, held_out, accelerator, config.recipe.data.workers, scales)
