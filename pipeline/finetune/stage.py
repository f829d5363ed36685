"""Stage 3: train routers and heads (and the student under them) on a data set's tasks, beside live teachers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.cache.spec import load_spec
from pipeline.dense.task_model import STAGE, restore_task_model, save_task_model
from pipeline.finetune.held_out import best_metric, draw_live_rep_sim, make_held_out
from pipeline.finetune.networks import find_origin, make_network, run_of
from pipeline.finetune.parts import (
    find_data,
    find_live_teachers,
    make_backward,
    make_batches,
    make_objective,
    run_facts,
    warnings_of,
    what_is_read,
)
from pipeline.finetune.recipe import FinetuneConfig, finetune_config
from pipeline.finetune.step import finetune_step, without_unused
from pipeline.progress import Update
from pipeline.train.devices import check_trackers, finish_trackers, make_accelerator, synchronise
from pipeline.train.figures import draw_finetuning
from pipeline.train.loop import Fit
from pipeline.train.protocols import FitResult, Hooks
from pipeline.train.run import RunOptions, Start, open_run
from pipeline.train.standardise import load_standardisers, save_standardisers

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
    origin = find_origin(config.init, recipe, load_spec(config.spec) if config.spec is not None else None)
    network = make_network(
        origin, recipe.student, rows, config.size, baseline=config.baseline, seed=recipe.training.seed
    )
    live_teachers = find_live_teachers(config, network, origin, accelerator)
    network = synchronise(without_unused(network, live_teachers.teachers if live_teachers else {}), accelerator)
    batches = make_batches(data, config, network, live_teachers, accelerator)
    evaluate, best = make_held_out(data, config, accelerator), best_metric(config)
    reads = what_is_read(data, live_teachers)
    run = open_run(out, settings, reads, accelerator, options.start)
    if options.say is not None and accelerator.is_main_process:
        for line in warnings_of(origin, live_teachers):
            options.say(line)
    hooks = Hooks(
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
