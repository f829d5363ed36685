"""Stage 3: train routers and heads (and the student under them) on a data set's tasks, beside live teachers."""

from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from pipeline.data.live_teachers import LiveTeachers, live_for_student
from pipeline.data.task_batches import TaskBatches, gate_noise
from pipeline.dense.task_data import TaskData, open_task_data
from pipeline.dense.task_model import STAGE, describe, restore_task_model, save_task_model
from pipeline.finetune.held_out import Measure, best_measure, draw_live_rep_sim, make_held_out
from pipeline.finetune.networks import Origin, find_origin, make_network, run_of
from pipeline.finetune.recipe import FinetuneConfig, FinetuneRecipe, finetune_config
from pipeline.finetune.step import Balancing, Distillation, Objective, counts_of_all, finetune_step, without_unused
from pipeline.pictures.charts import draw_finetuning
from pipeline.progress import Update
from pipeline.train.backward import Backward, GradientSurgery, PlainBackward
from pipeline.train.devices import check_trackers, finish_trackers, make_accelerator, synchronise
from pipeline.train.distillation import Scales, load_standardisers, save_standardisers
from pipeline.train.loop import Fit
from pipeline.train.protocols import Evaluate, FitResult, Hooks
from pipeline.train.run import RunOptions, Start, open_run
from sak.student.student import Student
from sak.tasks import Dataset
from sak.variants.frozen import Probe
from sak.variants.weighting import Weighting, combination, make_weighting

__all__ = ["FinetuneConfig", "find_live_teachers", "finetune", "finetune_config", "make_batches"]


def finetune(config: FinetuneConfig, out: Path, options: RunOptions = RunOptions()) -> FitResult:
    """Train one network on all tasks, or one a task; returns how it ended. torchrun starts several ranks."""
    train = finetune_each if config.baseline == "single-task" else finetune_one
    return train(config, out, options)


def finetune_one(config: FinetuneConfig, out: Path, options: RunOptions) -> FitResult:
    """Train one network on the configuration's tasks."""
    recipe, rows, settings = config.recipe, config.rows, config.model_dump(mode="json")
    accelerator = make_accelerator(recipe.training, device=config.device, trackers=options.trackers, folder=out)
    data = find_data(config)
    origin = find_origin(config)
    network = make_network(origin, config)
    live_teachers = find_live_teachers(config, network, origin, accelerator)
    network = synchronise(without_unused(network, live_teachers.teachers if live_teachers else {}), accelerator)
    batches = make_batches(data, config, network, live_teachers, accelerator)
    evaluate, best = make_held_out(data, config, accelerator), best_measure(config)
    reads = what_is_read(data, live_teachers)
    run = open_run(out, settings, reads, accelerator, options.start)
    if options.say is not None and accelerator.is_main_process:
        for line in warnings_of(origin, live_teachers):
            options.say(line)
    hooks = make_hooks(best, batches, evaluate, options)
    scales = load_standardisers(run_of(origin.location), accelerator.device) if live_teachers else {}
    objective = make_objective(recipe, rows, batches.steps_per_epoch, scales, accelerator.num_processes)
    fit = Fit(network, batches, finetune_step(objective), config=recipe.training, run=run, hooks=hooks,
              accelerator=accelerator, backward=make_backward(recipe, network, objective.weighting, accelerator),
              shares=recipe.student.shares())  # fmt: skip
    fit.begin(options, settings, reads=reads, **run_facts(config, network, origin, best))
    if accelerator.is_main_process:
        save_standardisers(scales, run.root)
    result = fit()
    if accelerator.is_main_process:
        run.conclude(step=result.step, stopped=result.stopped)
        draw_finetuning(run)
        if live_teachers is not None and evaluate is not None and not result.stopped:
            draw_live_rep_sim(run, fit.measured_model, live_teachers, evaluate, scales)
    finish_trackers(accelerator)
    return result


def finetune_each(config: FinetuneConfig, out: Path, options: RunOptions) -> FitResult:
    """The single-task baseline: one network a task, in `out/<task>`, one after the other; all resume together."""
    check_trackers(options.trackers)
    tasks, start = config.rows.names, options.start
    accelerator = make_accelerator(config.recipe.training, device=config.device)
    run = open_run(out, config.model_dump(mode="json"), None, accelerator, start)
    if accelerator.is_main_process:
        run.describe(stage=STAGE, kind="single-task", dataset=config.dataset, data=config.data, tasks=list(tasks),
                     parts={task: task for task in tasks})  # fmt: skip
    results: dict[str, FitResult] = {}
    for index, task in enumerate(tasks):
        begun = start.resume and (out / task / "checkpoints" / "last").is_dir()
        accelerator.wait_for_everyone()  # all ranks must have looked before one of them makes the directory
        part = replace(
            options,
            start=Start(resume=begun, overwrite=not begun, force=start.force and begun),
            progress=options.progress and partial(_part_progress, options.progress, index, len(tasks)),
        )
        if options.say is not None and accelerator.is_main_process:
            options.say(f"{task}: {out / task}")
        results[task] = finetune_one(config.model_copy(update={"tasks": (task,)}), out / task, part)
        if results[task].stopped:
            break
    *_, last = results.values()
    if accelerator.is_main_process:
        run.conclude(stopped=last.stopped, steps={task: result.step for task, result in results.items()})
    return last


def _part_progress(progress: Update, index: int, parts: int, done: int, total: int, note: str = "") -> None:
    """The progress of one of several equal parts as that of the whole."""
    progress(index * total + done, parts * total, note)


def find_data(config: FinetuneConfig) -> TaskData:
    """The images of the tasks, checked to be there."""
    return open_task_data(
        config.dataset,
        config.data,
        config.rows,
        fraction=config.fraction,
        seed=config.recipe.training.seed,
        persons_only=config.baseline == "single-task",
        boundaries=config.recipe.evaluation.boundary,
    )


def find_live_teachers(
    config: FinetuneConfig, network: nn.Module, origin: Origin, accelerator: Accelerator
) -> LiveTeachers | None:
    """The teachers to learn from, which run beside the training; None where nothing is distilled."""
    recipe = config.recipe.distillation
    distilling = config.distil and config.baseline is None and recipe.gamma > 0
    if not distilling or not isinstance(network, Student) or not network.config.teachers:
        return None
    live_teachers = live_for_student(
        network.config, origin.teachers, config.teachers, accelerator.device, recipe.precision
    )
    recipe.check_teachers(list(live_teachers.teachers))
    return live_teachers


def make_batches(
    data: TaskData,
    config: FinetuneConfig,
    network: nn.Module,
    live_teachers: LiveTeachers | None,
    accelerator: Accelerator,
) -> TaskBatches:
    """This rank's part of every batch."""
    training = config.recipe.training
    batches = TaskBatches(
        data.training,
        data.indices,
        describe(network).image_size,
        training.batch_size,
        training.seed,
        accelerator.device,
        workers=config.recipe.data.workers,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        teachers=live_teachers,
        draw=gate_noise(network, training.seed),
    )
    training.check_part(training.batch_size // accelerator.num_processes)
    return batches


def make_hooks(best: Measure, batches: TaskBatches, evaluate: Evaluate | None, options: RunOptions) -> Hooks:
    """What the loop saves, measures and reports."""
    return Hooks(
        save_model=save_task_model,
        load_model=restore_task_model,
        evaluate=evaluate,
        best=best.name,
        best_is_lower=best.lower_is_better,
        evaluate_first=True,
        progress=options.progress,
        say=options.say,
        remedy=batches.remedy,
    )


def make_objective(
    recipe: FinetuneRecipe, rows: Dataset, steps_per_epoch: int, scales: Scales, ranks: int
) -> Objective:
    """What the step minimises: weighted losses of the tasks, the distillation's, and a decoder's imbalance."""
    average, tasks = counts_of_all(ranks), recipe.tasks
    weighting = make_weighting(
        tasks.weighting,
        rows.weights,
        steps=steps_per_epoch * recipe.training.accumulate,
        seed=recipe.training.seed,
        temperature=tasks.temperature,
        average=average,
    )
    terms = (Distillation(recipe.distillation.make(scales), recipe.distillation.gamma), Balancing(tasks.balancing))
    return Objective(rows, weighting, terms, average)


def make_backward(
    recipe: FinetuneRecipe, network: nn.Module, weighting: Weighting, accelerator: Accelerator
) -> Backward:
    """How gradients come about; the weighting trains beside the network."""
    if recipe.tasks.gradients == "sum":
        return PlainBackward(accelerator, weighting)
    combine = combination(recipe.tasks.gradients, c=recipe.tasks.cagrad_c)
    return GradientSurgery(accelerator, network, weighting, combine, recipe.training.seed)


def warnings_of(origin: Origin, live_teachers: LiveTeachers | None) -> list[str]:
    """What the user must hear before it starts: everything with random weights."""
    random = live_teachers.random if live_teachers is not None else []
    line = f"warning: live teachers with RANDOM weights: {', '.join(random)}"
    return [*origin.warnings, *([line] if random else ())]


def what_is_read(data: TaskData, live_teachers: LiveTeachers | None) -> dict[str, Any]:
    """What a run must find again to be the same one: its images and its live teachers."""
    names = "\n".join(data.training.name(index) for index in data.indices)
    return {
        "images": len(data.indices),
        "images_sha256": sha256(names.encode()).hexdigest(),
        "live": live_teachers.describe() if live_teachers is not None else {},
    }


def run_facts(config: FinetuneConfig, network: nn.Module, origin: Origin, best: Measure) -> dict[str, Any]:
    """What `run.json` says of the run, beside what it reads."""
    described = describe(network)
    return {
        "stage": STAGE,
        "kind": config.baseline or described.kind,
        "tasks": list(described.tasks),
        "image_size": list(described.image_size),
        "init": origin.location,
        "dataset": config.dataset,
        "data": config.data,
        "best_by": best.name,
        "edges_measured_by": "odsF" if config.recipe.evaluation.boundary else "loss",
        "student": network.config.resolved().to_json() if isinstance(network, Student) else None,
        "probe": network.config.to_json() if isinstance(network, Probe) else None,
        "teachers": {name: recipe.to_json() for name, recipe in origin.teachers.items()},
    }
