"""Train the demo's own models, each by its own objective through the one training loop, and write their files.

OUT/scenes/            the scenes, rendered once, 1.1 GB; may be removed when all is done
OUT/runs/<name>/       a run's directory each: configuration, measurements, curves, checkpoints
OUT/<name>.safetensors, <name>.md   float16 weights and their card, as the package ships them
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.cluster import resolve_device
from pipeline.demo.teachers.card import write_model
from pipeline.demo.teachers.clip import ClipTraining
from pipeline.demo.teachers.crops import SceneBatch, SceneBatches, cut, random_of, whole
from pipeline.demo.teachers.dino import DinoTraining
from pipeline.demo.teachers.objective import Neighbours, Objective, load_weights, save_weights
from pipeline.demo.teachers.pictures import draw_curves
from pipeline.demo.teachers.pool import ScenePool, render_pool
from pipeline.demo.teachers.recipe import DemoTeachersRecipe
from pipeline.demo.teachers.sam import SamTraining
from pipeline.demo.teachers.stem import StemTraining
from pipeline.progress import Update
from pipeline.settings import load_settings, read_yaml
from pipeline.train.devices import make_accelerator
from pipeline.train.loop import Fit
from pipeline.train.protocols import FitResult, Hooks, StepResult
from pipeline.train.run import CONFIG, RunDirectory, differences
from sak.errors import UsageError, nearest

OBJECTIVES: Mapping[str, Callable[[int], Objective]] = {
    "dino": DinoTraining,
    "clip": ClipTraining,
    "sam": SamTraining,
    "stem": StemTraining,
}

KNOWN_SCENES = 800
"""Scenes among which held-out ones look for their neighbours."""


def run_demo_teachers(
    out: str | Path,
    *,
    only: Sequence[str] = (),
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    processes: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Update | None = None,
) -> Mapping[str, FitResult]:
    """`sak-cli demo-teachers`: scenes, then one training after the other; run again, it goes on where it stopped.

    Returns how each ended; a model whose file is there is left out, and said to be. UsageError for an unknown name in
    `only`, or a device that is not there.
    """
    for name in only:
        if name not in OBJECTIVES:
            raise UsageError(f"--only: no demo model is called {name!r}{nearest(name, OBJECTIVES)}")
    recipe = load_settings(DemoTeachersRecipe, None if config is None else Path(config), overrides)
    root, found = Path(out), resolve_device(device)
    results: dict[str, FitResult] = {}
    for name in only or tuple(OBJECTIVES):
        done = root / f"{name}.safetensors"
        if say is not None:
            say(f"demo/{name}: {done} is there, nothing is trained" if done.is_file() else f"demo/{name}")
        if done.is_file():
            continue
        pool = render_pool(root / "scenes", recipe.scenes(name).spec(), processes=processes, progress=progress)
        results[name] = train(name, root, pool, recipe, found, say=say, progress=progress)
        if results[name].stopped:
            break
    return results


def train(
    name: str,
    root: Path,
    pool: ScenePool,
    recipe: DemoTeachersRecipe,
    device: str,
    *,
    say: Callable[[str], None] | None = None,
    progress: Update | None = None,
) -> FitResult:
    """Train one model to its end, or go on with it, and write its files when it has got there."""
    training = recipe.training(name)
    accelerator = make_accelerator(training, device=device)
    torch.manual_seed(training.seed)
    model = OBJECTIVES[name](training.seed)
    run = _open_run(
        root / "runs" / name,
        {
            "model": name,
            "device": device,
            "pool": recipe.scenes(name).model_dump(),
            "training": training.model_dump(mode="json"),
        },
    )
    hooks = Hooks(
        save_model=save_weights,
        load_model=load_weights,
        evaluate=_measures(model, pool, recipe, accelerator),
        best=model.best,
        best_is_lower=False,
        evaluate_first=True,
        progress=progress,
        say=say,
    )
    source = _batches(model, pool, recipe, name, accelerator)
    fit = Fit(model, source, _step, config=training, run=run, hooks=hooks, accelerator=accelerator)
    if (run.checkpoints / "last").is_symlink():
        fit.resume()
    run.describe(stage="demo-teachers", model=name, objective=model.says)
    started = time.process_time()
    result = fit()
    run.conclude(step=result.step, stopped=result.stopped, cpu_seconds=round(time.process_time() - started, 1))
    draw_curves(run)
    if not result.stopped:
        write_model(root, name, model, recipe, run)
    return result


def _open_run(root: Path, settings: Mapping[str, Any]) -> RunDirectory:
    """A model's run, new or to go on with; UsageError where it was begun with other settings."""
    if (root / "checkpoints" / "last").is_symlink():
        _check_settings(root, settings)
        return RunDirectory.resume(root, settings)
    return RunDirectory.create(root, settings, overwrite=True)


def _check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    changed = differences(read_yaml(root / CONFIG, "a run's settings"), settings)
    if changed:
        listed = "; ".join(f"{name}: was {old!r}, now {new!r}" for name, old, new in changed)
        raise UsageError(f"{root} was begun with other settings: {listed}; put them back, or remove it to begin again")


def _step(model: nn.Module, batch: SceneBatch) -> StepResult:
    result: StepResult = model(batch)
    return result


def _batches(
    model: Objective, pool: ScenePool, recipe: DemoTeachersRecipe, name: str, accelerator: Accelerator
) -> SceneBatches:
    """The scenes to train on: all but the held-out ones, those with a main class alone where the objective needs it."""
    indices = np.arange(len(pool) - recipe.pool.held_out)
    if model.subjects_only:
        indices = indices[pool.subjects()[indices] >= 0]
    training = recipe.training(name)
    return SceneBatches(pool, indices, model.plans(), training.batch_size, training.seed, accelerator.device)


def _measures(
    model: Objective, pool: ScenePool, recipe: DemoTeachersRecipe, accelerator: Accelerator
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """The objective's own measures on the held-out scenes, and whether neighbours tell their main class."""
    train = len(pool) - recipe.pool.held_out
    subjects, plan, device = pool.subjects(), model.held_out_plan(), accelerator.device
    held_out = np.arange(train, len(pool))
    rng = random_of(recipe.pool.seed, "held out", 0)
    plain = whole(plan.size)
    batch = cut(pool, held_out, {"whole": plan}, rng, device)
    known = np.flatnonzero(subjects[:train] >= 0)[:KNOWN_SCENES]
    asked = held_out[subjects[held_out] >= 0]
    neighbours = Neighbours(
        cut(pool, known, {"whole": plain}, rng, device), cut(pool, asked, {"whole": plain}, rng, device)
    )

    @torch.no_grad()
    def measure(trained: nn.Module, step: int) -> Mapping[str, float]:
        del step
        if not isinstance(trained, Objective):
            raise TypeError(f"a model of a demo objective, not {type(trained).__name__}")
        return {**trained.measure(batch), "knn": neighbours.accuracy(trained)}

    return measure
