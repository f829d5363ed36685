"""Measurements during fine-tuning: every task's metric on the validation split, and delta_m over a baseline run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.data.augment import Prepared, for_evaluation
from pipeline.data.live_teachers import LiveTeachers
from pipeline.data.loading import BatchLoader, load_batches
from pipeline.data.sample import TaskDataset
from pipeline.dense.evaluation import Predict, evaluate_tasks
from pipeline.dense.figures import draw_rep_sim, spread
from pipeline.dense.task_model import checkpoint_folder, describe
from pipeline.finetune.recipe import EvaluationRecipe
from pipeline.train.distillation import own_units
from pipeline.train.run import ABOUT, METRICS, RunDirectory
from sak.errors import UsageError
from sak.losses.distillation import image_similarities
from sak.losses.standardise import Standardisation
from sak.losses.tasks import LOSSES
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset, Task

Size = tuple[int, int]
SLOW_METRIC = "odsF"


@dataclass(frozen=True)
class Measured:
    """What stands for a task during training: its metric, or (edges, unless boundaries are matched) its loss."""

    task: Task
    by_loss: bool

    @property
    def name(self) -> str:
        """`metric/<task>` or `loss/<task>`, as in `metrics.jsonl`."""
        return f"{'loss' if self.by_loss else 'metric'}/{self.task.name}"

    @property
    def lower_is_better(self) -> bool:
        """The number's direction."""
        return self.by_loss or self.task.lower_is_better


def measured(rows: Dataset, recipe: EvaluationRecipe) -> tuple[Measured, ...]:
    """One per task."""
    return tuple(Measured(task, task.metric == SLOW_METRIC and not recipe.boundary) for task in rows)


@dataclass(frozen=True)
class BestMetric:
    """The number of a measurement that tells the best checkpoint, and its direction."""

    name: str
    lower_is_better: bool


def best_metric(whole: Dataset, rows: Dataset, best: str | None, recipe: EvaluationRecipe) -> BestMetric:
    """The recipe's `best`, or the first task trained where it names none or one that is left out of this training.

    UsageError where the data set has no such task at all.
    """
    found = {measure.task.name: measure for measure in measured(rows, recipe)}
    wanted = rows.names[0] if best is None or whole[best].name not in found else best
    return BestMetric(found[wanted].name, found[wanted].lower_is_better)


@dataclass(frozen=True)
class HeldOut:
    """Called with the network and the step, by all processes together.

    Attributes:
        dataset: the validation split, with the labels of all tasks.
        rows: its tasks.
        size: (H, W) that the network takes.
        recipe: batch, workers, and whether boundaries are matched.
        accelerator: processes, device and precision.
        baseline: the numbers that delta_m is over, by the names of `Measured`; None: no delta_m.
    """

    dataset: TaskDataset
    rows: Dataset
    size: Size
    recipe: EvaluationRecipe
    accelerator: Accelerator
    baseline: Mapping[str, float] | None = None

    @property
    def count(self) -> int:
        """Images that are measured."""
        return len(self.dataset) if self.recipe.limit is None else min(self.recipe.limit, len(self.dataset))

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """`metric/<task>`, `loss/<task>` and `delta_m`; numbers that do not exist are left out."""
        del step
        network = describe(model)

        def predict(images: Tensor) -> Mapping[str, Tensor]:
            with self.accelerator.autocast():
                return network.predict(images)

        values = {f"metric/{task}": value for task, value in self._metrics(predict).items()}
        by_loss = [measure.task for measure in measured(self.rows, self.recipe) if measure.by_loss]
        values |= {f"loss/{task.name}": self._loss(predict, task) for task in by_loss}
        values = {name: value for name, value in values.items() if isfinite(value)}
        return values if self.baseline is None else values | gain_over(self.baseline, values, self.rows, self.recipe)

    def _metrics(self, predict: Predict) -> dict[str, float]:
        rows = self.rows.select(
            measure.task.name for measure in measured(self.rows, self.recipe) if not measure.by_loss
        )
        if not len(rows):
            return {}
        return evaluate_tasks(
            predict,
            self.dataset,
            rows,
            size=self.size,
            accelerator=self.accelerator,
            batch_size=self.recipe.batch_size,
            workers=self.recipe.workers,
            boundary=self.recipe.boundary,
            limit=self.recipe.limit,
        ).metrics

    def _loss(self, predict: Predict, task: Task) -> float:
        """The mean over images of the task's loss, each image padded or cut around its centre to the network's size."""
        mine = range(self.accelerator.process_index, self.count, self.accelerator.num_processes)
        loader = Centred(self.dataset, self.size)
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for image in load_batches(loader, iter(mine), workers=self.recipe.workers, pin=False):
            output = predict(image.image[None].to(total.device))[task.name]
            total += LOSSES[task.loss](output, image.labels[task.name][None].to(total.device), lambda value: value)
        return float(self.accelerator.reduce(total, "sum")) / self.count


@dataclass
class Centred(BatchLoader[int, Prepared]):
    """Loads images by their number in `dataset`, padded or cut around their centre to `size` (H, W)."""

    dataset: TaskDataset
    size: Size

    def load(self, wanted: int) -> Prepared:
        """One validation image of exactly the network's size."""
        whole = for_evaluation(self.dataset[wanted], self.size)
        top, left = ((have - want) // 2 for have, want in zip(whole.image.shape[-2:], self.size, strict=True))
        window = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
        return replace(
            whole,
            image=whole.image[window].contiguous(),
            labels={task: label[window].contiguous() for task, label in whole.labels.items()},
        )


def gain_over(
    baseline: Mapping[str, float], values: Mapping[str, float], rows: Dataset, recipe: EvaluationRecipe
) -> dict[str, float]:
    """`delta_m` in percent, each task by its metric or (see `Measured`) its loss; empty where a number is missing."""
    compared = measured(rows, recipe)
    if any(measure.name not in values for measure in compared):
        return {}
    table = replace(
        rows, tasks=tuple(replace(measure.task, lower_is_better=measure.lower_is_better) for measure in compared)
    )
    scores, theirs = ({measure.task.name: side[measure.name] for measure in compared} for side in (values, baseline))
    return {"delta_m": delta_m(table, scores, theirs).value}


def baseline_scores(run: Path, dataset: str, rows: Dataset, recipe: EvaluationRecipe) -> dict[str, float]:
    """What a baseline run measured at its best checkpoint, by `Measured.name`.

    UsageError where it is of another data set than `dataset`, or one is missing.
    """
    if not (run / ABOUT).is_file():
        raise UsageError(f"--baseline-run {run}: no run there; train one with sak-cli finetune --baseline single-task")
    about = RunDirectory(run).about()
    if about.get("dataset") != dataset:
        raise UsageError(
            f"--baseline-run {run} was trained on {about.get('dataset', 'no data set')}, not on {dataset}: delta_m is "
            "over a baseline of the same data"
        )
    found: dict[str, float] = {}
    for folder in about.get("parts", {"": "."}).values():
        found |= _at_best(run / folder)
    for measure in measured(rows, recipe):
        if measure.name not in found:
            raise UsageError(
                f"--baseline-run {run} has not measured {measure.name}; train it on the same tasks, with evaluation "
                "(and evaluation.boundary as here)"
            )
    return found


def _at_best(run: Path) -> dict[str, float]:
    step = int(checkpoint_folder(run).resolve().name.rpartition("-")[2])
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines() if line.endswith("}")]
    at_step = [line for line in lines if line.get("evaluation") and line["step"] == step]
    return {name: value for name, value in (at_step or [{}])[-1].items() if name.startswith(("metric/", "loss/"))}


# rep_sim of a fine-tuned student beside its live teachers, on a few validation images, drawn into the run.

BATCHES = 4
"""Of the evaluation's batch size, spread evenly over the validation split."""


@dataclass(frozen=True)
class Similarity:
    """The mean map cosine of `images` images: teacher -> a value for each of the student's `levels`."""

    levels: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    images: int

    def to_text(self) -> str:
        """The means of the levels in a line."""
        means = ", ".join(f"{name} {sum(row) / len(row):.4f}" for name, row in self.values.items())
        return f"rep_sim on {self.images} validation images: {means}"


def draw_live_rep_sim(
    run: RunDirectory,
    student: nn.Module,
    guides: LiveTeachers,
    held_out: HeldOut,
    standardised: Mapping[str, Sequence[Standardisation]],
) -> Path:
    """`rep_sim.png`, and a line of `train.log`; by one process alone."""
    found = live_similarity(student, guides, held_out, standardised)
    run.log(found.to_text())
    return draw_rep_sim(found.values, found.levels, run.figures / "rep_sim.png", images=found.images)


@torch.no_grad()
def live_similarity(
    student: nn.Module, guides: LiveTeachers, held_out: HeldOut, standardised: Mapping[str, Sequence[Standardisation]]
) -> Similarity:
    """The student's aligned maps against its teachers', of the very same pixels, after the loss's own resize.

    A student of `standardised` targets is measured in its teachers' own units.
    """
    training = student.training
    student.eval()
    levels: tuple[int, ...] = ()
    found: dict[str, list[Tensor]] = {name: [] for name in guides.teachers}
    for images in _batches(held_out):
        with held_out.accelerator.autocast():
            answers = student(images, tasks=()).teachers
        for name, targets in guides(images).items():
            levels = answers[name].levels
            found[name].append(image_similarities(own_units(answers[name], standardised.get(name)), targets).double())
    student.train(training)
    rows = {name: torch.cat(parts) for name, parts in found.items()}
    means = {name: tuple(row.mean(0).tolist()) for name, row in rows.items()}
    return Similarity(levels, means, max(len(row) for row in rows.values()))


def _batches(held_out: HeldOut) -> Iterator[Tensor]:
    """Normalised images (B, 3, H, W) on the device."""
    loader, size = Centred(held_out.dataset, held_out.size), held_out.recipe.batch_size
    places = spread(held_out.count, BATCHES * size)
    for start in range(0, len(places), size):
        images = torch.stack([loader.load(place).image for place in places[start : start + size]])
        yield images.to(held_out.accelerator.device)
