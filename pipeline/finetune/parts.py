"""The parts of a fine-tuning, each made from its configuration: data, teachers, batches, objective, facts."""

from hashlib import sha256
from typing import Any

from accelerate import Accelerator
from torch import nn

from pipeline.data.live_teachers import LiveTeachers, live_for_student
from pipeline.data.task_batches import TaskBatches, gate_noise
from pipeline.dense.task_data import TaskData, open_task_data
from pipeline.dense.task_model import STAGE, describe
from pipeline.finetune.held_out import BestMetric
from pipeline.finetune.networks import Origin
from pipeline.finetune.recipe import FinetuneConfig, FinetuneRecipe
from pipeline.finetune.step import Balancing, Distillation, Objective, counts_of_all
from pipeline.train.backward import Backward, GradientSurgery, PlainBackward
from pipeline.train.standardise import Scales
from sak.student.student import Student
from sak.tasks import Dataset
from sak.variants.frozen import Probe
from sak.variants.weighting import Weighting, combination, make_weighting


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
        data.places,
        describe(network).image_size,
        training.batch_size,
        training.seed,
        accelerator.device,
        workers=config.recipe.data.workers,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        guides=live_teachers,
        draw=gate_noise(network, training.seed),
    )
    training.check_part(training.batch_size // accelerator.num_processes)
    return batches


def make_objective(
    recipe: FinetuneRecipe, rows: Dataset, steps_per_epoch: int, scales: Scales, ranks: int
) -> Objective:
    """What the step minimises: weighted losses of the tasks, the distillation's, and a decoder's imbalance."""
    average, asked = counts_of_all(ranks), recipe.tasks
    weighting = make_weighting(
        asked.weighting,
        rows.weights,
        steps=steps_per_epoch * recipe.training.accumulate,
        seed=recipe.training.seed,
        temperature=asked.temperature,
        average=average,
    )
    terms = (Distillation(recipe.distillation.make(scales), recipe.distillation.gamma), Balancing(asked.balancing))
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
    """What the user must hear before it starts: whatever knows nothing."""
    random = live_teachers.random if live_teachers is not None else []
    line = f"warning: live teachers with RANDOM weights: {', '.join(random)}"
    return [*origin.warnings, *([line] if random else ())]


def what_is_read(data: TaskData, live_teachers: LiveTeachers | None) -> dict[str, Any]:
    """What a run must find again to be the same one: its images and its live teachers."""
    names = "\n".join(data.training.name(index) for index in data.places)
    return {
        "images": len(data.places),
        "images_sha256": sha256(names.encode()).hexdigest(),
        "live": live_teachers.describe() if live_teachers is not None else {},
    }


def run_facts(config: FinetuneConfig, network: nn.Module, origin: Origin, best: BestMetric) -> dict[str, Any]:
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
