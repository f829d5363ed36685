"""Stage 3: train routers and heads (and the student under them) on a data set's tasks, beside live teachers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pipeline.cache.spec import load_spec
from pipeline.cluster import resolve_device
from pipeline.dense.task_model import STAGE, restore_task_model, save_task_model
from pipeline.finetune.held_out import draw_live_rep_sim
from pipeline.finetune.networks import Baseline, find_origin, make_network, run_of
from pipeline.finetune.parts import (
    FinetuneConfig,
    backward_of,
    facts,
    find_data,
    find_guides,
    held_out,
    make_batches,
    make_objective,
    tell,
    weighting_of,
    what_is_best,
    what_is_read,
)
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.finetune.step import counts_of_all, finetune_step, without_unused
from pipeline.progress import Update
from pipeline.settings import parse_settings
from pipeline.train.config import recipe_and_rest
from pipeline.train.devices import check_trackers, finish_trackers, make_accelerator, start_trackers, synchronise
from pipeline.train.distillation import load_standardisers, save_standardisers
from pipeline.train.figures import draw_finetuning
from pipeline.train.loop import Fit
from pipeline.train.protocols import FitResult, Hooks
from pipeline.train.run import ANEW, Start, open_run
from sak.errors import UsageError, nearest

__all__ = ["FinetuneConfig", "Session", "find_guides", "finetune", "finetune_config", "make_batches"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """What goes with a run and changes nothing of it."""

    start: Start = ANEW
    trackers: Sequence[str] = ()
    say: Say | None = None
    progress: Update | None = None


RECIPE_FLAGS = {"workers": ("data.workers", "evaluation.workers"), "eval_boundary": ("evaluation.boundary",)}
"""Flags that stand for settings of the recipe."""


def finetune_config(**flags: Any) -> FinetuneConfig:
    """What the flags of `sak-cli finetune` ask for, by their names; those of the recipe go over its file."""
    recipe, rest = recipe_and_rest(FinetuneRecipe, flags, RECIPE_FLAGS)
    baseline, dataset = rest.get("baseline"), rest.get("dataset", "")
    if baseline is not None and baseline not in get_args(Baseline):
        raise UsageError(f"no baseline {baseline!r}{nearest(baseline, get_args(Baseline))}")
    if dataset.endswith((".yaml", ".yml")):
        rest["dataset"] = str(Path(dataset).resolve())
    decided = {"distil": not rest.pop("no_distill", False), "device": resolve_device(rest.get("device", "cuda"))}
    return parse_settings(FinetuneConfig, {**rest, **decided, "recipe": recipe}, "finetune")


def finetune(config: FinetuneConfig, out: Path, session: Session = Session()) -> FitResult:
    """Train one network on all tasks, or one a task; returns how it ended. torchrun starts several processes."""
    check_trackers(session.trackers)
    if config.baseline == "single-task":
        return finetune_each(config, out, session)
    return finetune_one(config, out, session)


def finetune_one(config: FinetuneConfig, out: Path, session: Session) -> FitResult:
    """Train one network on the configuration's tasks."""
    recipe, rows = config.recipe, config.rows
    size = recipe.data.size or rows.input_size
    accelerator = make_accelerator(recipe.training, device=config.device, trackers=session.trackers, folder=out)
    data = find_data(config, rows)
    origin = find_origin(config.init, recipe, load_spec(config.spec) if config.spec is not None else None)
    network = make_network(origin, recipe, rows, size, baseline=config.baseline, seed=recipe.training.seed)
    guides = find_guides(config, network, origin, accelerator)
    if guides is not None:
        recipe.distillation.check_teachers(list(guides.teachers))
    network = synchronise(without_unused(network, guides.teachers if guides else {}), accelerator)
    batches = make_batches(data, config, network, guides, accelerator)
    evaluate = held_out(data, config, rows, accelerator)
    settings, reads = config.model_dump(mode="json"), what_is_read(data, guides)
    run = open_run(out, settings, reads, accelerator, session.start)
    if session.say is not None and accelerator.is_main_process:
        tell(session.say, origin, guides)
    best = what_is_best(config, rows)
    hooks = Hooks(
        save_model=save_task_model,
        load_model=restore_task_model,
        evaluate=evaluate,
        best=best.name,
        best_is_lower=best.lower_is_better,
        evaluate_first=True,
        progress=session.progress,
        say=session.say,
        remedy=batches.remedy,
    )
    average = counts_of_all(accelerator.num_processes)
    scales = load_standardisers(run_of(origin.place), accelerator.device) if guides else {}
    weighting = weighting_of(recipe, rows, batches.steps_per_epoch, average)
    distillation = replace(recipe.distillation.loss(), standardisers=scales)
    objective = make_objective(recipe, rows, weighting, distillation, average)
    fit = Fit(network, batches, finetune_step(objective), config=recipe.training, run=run, hooks=hooks,
              accelerator=accelerator, backward=backward_of(recipe, network, weighting, accelerator),
              shares=recipe.student.shares())  # fmt: skip
    if session.start.resume:
        fit.resume()
    if accelerator.is_main_process:
        save_standardisers(scales, run.root)
        asked = {"dataset": config.dataset, "data": config.data, "best_by": best.name,
                 "edges_measured_by": "odsF" if recipe.evaluation.boundary else "loss"}  # fmt: skip
        run.describe(reads=reads, **facts(network, origin, baseline=config.baseline, **asked))
    start_trackers(accelerator, "sak-finetune", settings)
    result = fit()
    if accelerator.is_main_process:
        run.conclude(step=result.step, stopped=result.stopped)
        draw_finetuning(run)
        if guides is not None and evaluate is not None and not result.stopped:
            draw_live_rep_sim(run, fit.measured_model, guides, evaluate, scales)
    finish_trackers(accelerator)
    return result


def finetune_each(config: FinetuneConfig, out: Path, session: Session) -> FitResult:
    """The single-task baseline: one network a task, in `out/<task>`, one after the other; all resume together."""
    rows = config.rows
    accelerator = make_accelerator(config.recipe.training, device=config.device)
    run = open_run(out, config.model_dump(mode="json"), None, accelerator, session.start)
    if accelerator.is_main_process:
        run.describe(stage=STAGE, kind="single-task", dataset=config.dataset, data=config.data, tasks=list(rows.names),
                     parts={task: task for task in rows.names})  # fmt: skip
    results: list[FitResult] = []
    for index, task in enumerate(rows.names):
        begun = session.start.resume and (out / task / "checkpoints" / "last").is_dir()
        start = Start(resume=begun, overwrite=not begun, force=session.start.force and begun)
        accelerator.wait_for_everyone()
        shown = session.progress and share_of(session.progress, index, len(rows))
        part = Session(start, session.trackers, session.say, shown)
        if session.say is not None and accelerator.is_main_process:
            session.say(f"{task}: {out / task}")
        results.append(finetune_one(config.model_copy(update={"tasks": (task,)}), out / task, part))
        if results[-1].stopped:
            break
    if accelerator.is_main_process:
        run.conclude(stopped=results[-1].stopped, steps={task: result.step for task, result in zip(rows.names, results,
                                                                                            strict=False)})  # fmt: skip
    return results[-1]


def share_of(progress: Update, place: int, parts: int) -> Update:
    """The progress of one of several equal parts as that of the whole."""

    def update(done: int, total: int, note: str = "") -> None:
        progress(place * total + done, parts * total, note)

    return update
