"""The parts of a fine-tuning, each made from its configuration: data, teachers, batches, objective, measurement."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import Field
from torch import nn

from pipeline.data.datasets import task_table
from pipeline.data.live_teachers import LiveTeachers, live_for_student
from pipeline.data.task_batches import TaskBatches, gate_noise
from pipeline.dense.task_data import TaskData, open_task_data
from pipeline.dense.task_model import STAGE, describe
from pipeline.finetune.held_out import BestMetric, HeldOut, baseline_scores, best_metric
from pipeline.finetune.networks import Baseline, Origin
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.finetune.step import Balancing, Distillation, Objective
from pipeline.settings import Frozen
from pipeline.train.backward import Backward, GradientSurgery, PlainBackward
from sak.errors import UsageError
from sak.losses.distillation import DistillationLoss
from sak.losses.tasks import Average
from sak.student.student import Student
from sak.tasks import Dataset
from sak.variants.frozen import Probe
from sak.variants.weighting import Weighting, combination, make_weighting


class FinetuneConfig(Frozen):
    """What a run was asked for; written whole into its `config.yaml`.

    `init` is where the network starts (see `find_origin`), `spec` describes teachers that nothing else does, and where
    the weights of the others are. `teachers` are those whose answers are distilled, by default all that the student
    knows; none with `distil` false. `baseline_run` is what delta_m is over.
    """

    init: str
    dataset: str
    data: str
    recipe: FinetuneRecipe = Field(default_factory=FinetuneRecipe)
    tasks: tuple[str, ...] | None = None
    teachers: tuple[str, ...] | None = None
    spec: str | None = None
    distil: bool = True
    baseline: Baseline | None = None
    baseline_run: str | None = None
    fraction: float = 1.0
    device: str = "cuda"

    @property
    def rows(self) -> Dataset:
        """The data set's tasks that are trained, with the recipe's weights; UsageError for an unknown one."""
        rows = task_table(self.dataset).reweighted(self.recipe.tasks.weights)
        return rows if self.tasks is None else rows.select(self.tasks)


def find_data(config: FinetuneConfig, rows: Dataset) -> TaskData:
    """The images of the tasks, checked to be there."""
    return open_task_data(
        config.dataset,
        config.data,
        rows,
        fraction=config.fraction,
        seed=config.recipe.training.seed,
        persons_only=config.baseline == "single-task",
        boundaries=config.recipe.evaluation.boundary,
    )


def make_objective(
    recipe: FinetuneRecipe, rows: Dataset, weighting: Weighting, distillation: DistillationLoss, average: Average
) -> Objective:
    """What the step minimises."""
    terms = (Distillation(distillation, recipe.distillation.gamma), Balancing(recipe.tasks.balancing))
    return Objective(rows, weighting, terms, average)


def find_guides(
    config: FinetuneConfig, network: nn.Module, origin: Origin, accelerator: Accelerator
) -> LiveTeachers | None:
    """The live teachers; None where nothing is distilled."""
    distilling = config.distil and config.baseline is None and config.recipe.distillation.gamma > 0
    if not distilling or not isinstance(network, Student) or not network.config.teachers:
        return None
    return live_for_student(
        network.config, origin.teachers, config.teachers, accelerator.device, config.recipe.distillation.precision
    )


def make_batches(
    data: TaskData, config: FinetuneConfig, network: nn.Module, guides: LiveTeachers | None, accelerator: Accelerator
) -> TaskBatches:
    """This process's part of every batch."""
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
        guides=guides,
        draw=gate_noise(network, training.seed),
    )
    share = training.batch_size // accelerator.num_processes
    if share % training.accumulate:
        raise UsageError(f"{share} images a process do not divide into {training.accumulate} accumulated parts")
    return batches


def held_out(data: TaskData, config: FinetuneConfig, rows: Dataset, accelerator: Accelerator) -> HeldOut | None:
    """The measurement on the validation split; None where the data has none."""
    if data.validation is None:
        return None
    recipe = config.recipe.evaluation
    over = config.baseline_run
    baseline = baseline_scores(Path(over), config.dataset, rows, recipe) if over is not None else None
    size = config.recipe.data.size or rows.input_size
    return HeldOut(data.validation, rows, size, recipe, accelerator, baseline)


def what_is_best(config: FinetuneConfig, rows: Dataset) -> BestMetric:
    """The measurement that makes a checkpoint the best: delta_m over a baseline run, else the recipe's task."""
    if config.baseline_run is not None:
        return BestMetric("delta_m", lower_is_better=False)
    return best_metric(task_table(config.dataset), rows, config.recipe.best, config.recipe.evaluation)


def weighting_of(recipe: FinetuneRecipe, rows: Dataset, steps_per_epoch: int, average: Average) -> Weighting:
    """How the tasks' losses are weighted."""
    return make_weighting(
        recipe.tasks.weighting,
        rows.weights,
        steps=steps_per_epoch * recipe.training.accumulate,
        seed=recipe.training.seed,
        temperature=recipe.tasks.temperature,
        average=average,
    )


def backward_of(recipe: FinetuneRecipe, network: nn.Module, weighting: Weighting, accelerator: Accelerator) -> Backward:
    """How gradients come about; the weighting trains beside the network."""
    asked = recipe.tasks
    if asked.gradients == "sum":
        return PlainBackward(accelerator, weighting)
    combine = combination(asked.gradients, c=asked.cagrad_c)
    return GradientSurgery(accelerator, network, weighting, combine, recipe.training.seed)


# What a fine-tuning run says of itself: to its user before it starts, and in its `run.json`.


def tell(say: Callable[[str], None], origin: Origin, guides: LiveTeachers | None) -> None:
    """What the user must hear before it starts: whatever knows nothing."""
    for line in origin.told:
        say(line)
    if guides is not None and guides.random:
        say(f"warning: live teachers with RANDOM weights: {', '.join(guides.random)}")


def what_is_read(data: TaskData, guides: LiveTeachers | None) -> dict[str, Any]:
    """What a run must find again to be the same one: its images and its live teachers."""
    names = "\n".join(data.training.name(index) for index in data.indices)
    return {
        "images": len(data.indices),
        "images_sha256": sha256(names.encode()).hexdigest(),
        "live": guides.describe() if guides else {},
    }


def facts(network: nn.Module, origin: Origin, *, baseline: str | None, **asked: Any) -> dict[str, Any]:
    """What `run.json` says of the run, beside what was `asked`."""
    found = describe(network)
    return {
        "stage": STAGE,
        "kind": baseline or found.kind,
        "tasks": list(found.tasks),
        "image_size": list(found.image_size),
        "init": origin.place,
        **asked,
        "student": network.config.resolved().to_json() if isinstance(network, Student) else None,
        "probe": network.config.to_json() if isinstance(network, Probe) else None,
        "teachers": {name: recipe.to_json() for name, recipe in origin.teachers.items()},
    }
