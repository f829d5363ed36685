"""Fine-tuning's measurements on the validation split: metrics, delta_m over a baseline run, rep_sim with teachers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.data.augment import Prepared, for_evaluation
from pipeline.data.datasets import task_table
from pipeline.data.live_teachers import LiveTeachers
from pipeline.data.loading import BatchLoader, load_batches
from pipeline.data.sample import TaskDataset
from pipeline.dense.evaluation import Predict, evaluate_tasks
from pipeline.dense.task_data import TaskData
from pipeline.dense.task_model import checkpoint_folder, describe
from pipeline.finetune.recipe import EvaluationRecipe, FinetuneConfig
from pipeline.pictures.charts import draw_rep_sim
from pipeline.pictures.panel import spread
from pipeline.train.distillation import Scales, own_units
from pipeline.train.run import ABOUT, RunDirectory
from sak.errors import UsageError
from sak.losses.distillation import image_similarities
from sak.losses.tasks import LOSSES
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset, Task
from sak.teachers.recipe import Size

SLOW_METRIC = "odsF"


@dataclass(frozen=True)
class Measure:
    """A number of `metrics.jsonl` that stands for a task, or for all; `by_loss` for one that is the task's loss."""

    name: str
    lower_is_better: bool
    by_loss: bool = False


def measures(rows: Dataset, recipe: EvaluationRecipe) -> dict[str, Measure]:
    """By task: its metric, or (edges, unless boundaries are matched, which takes minutes) its loss."""
    by_task = {}
    for task in rows:
        by_loss = task.metric == SLOW_METRIC and not recipe.boundary
        name = f"{'loss' if by_loss else 'metric'}/{task.name}"
        by_task[task.name] = Measure(name, by_loss or task.lower_is_better, by_loss)
    return by_task


def best_measure(config: FinetuneConfig) -> Measure:
    """What tells the best checkpoint: delta_m over a baseline run, else the measure of the recipe's `best`.

    It is the first task's where the recipe names none, or one that is left out of this training. UsageError where the
    data set has no such task at all.
    """
    if config.baseline_run is not None:
        return Measure("delta_m", lower_is_better=False)
    best, by_task = config.recipe.best, measures(config.rows, config.recipe.evaluation)
    named = best is not None and task_table(config.dataset)[best].name in by_task
    return by_task[best if best is not None and named else config.rows.names[0]]


@dataclass(frozen=True)
class HeldOut:
    """Called with the network and the step, by all ranks together.

    Attributes:
        dataset: the validation split, with the labels of all tasks.
        rows: its tasks.
        size: (H, W) that the network takes.
        recipe: batch, workers, and whether boundaries are matched.
        accelerator: ranks, device and precision.
        baseline: the numbers that delta_m is over, by the names of measures; None: no delta_m.
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
        values |= {
            measure.name: self._loss(predict, self.rows[task])
            for task, measure in measures(self.rows, self.recipe).items()
            if measure.by_loss
        }
        values = {name: value for name, value in values.items() if isfinite(value)}
        return values if self.baseline is None else values | gain_over(self.baseline, values, self.rows, self.recipe)

    def _metrics(self, predict: Predict) -> dict[str, float]:
        by_task = measures(self.rows, self.recipe)
        rows = self.rows.select(task for task, measure in by_task.items() if not measure.by_loss)
        if not len(rows):
            return {}
        options = self.recipe.model_dump()
        return evaluate_tasks(
            predict, self.dataset, rows, size=self.size, accelerator=self.accelerator, **options
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


def make_held_out(data: TaskData, config: FinetuneConfig, accelerator: Accelerator) -> HeldOut | None:
    """The measurement on the validation split; None where the data has none."""
    if data.validation is None:
        return None
    rows, recipe, run = config.rows, config.recipe.evaluation, config.baseline_run
    baseline = baseline_scores(Path(run), config.dataset, rows, recipe) if run is not None else None
    return HeldOut(data.validation, rows, config.size, recipe, accelerator, baseline)


@dataclass
class Centred(BatchLoader[int, Prepared]):
    """Loads images by their number in `dataset`, padded or cut around their centre to `size` (H, W)."""

    dataset: TaskDataset
    size: Size

    def load(self, wanted: int) -> Prepared:
        """One validation image of exactly the network's size."""
        padded = for_evaluation(self.dataset[wanted], self.size)
        top, left = ((have - want) // 2 for have, want in zip(padded.image.shape[-2:], self.size, strict=True))
        window = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
        labels = {task: label[window].contiguous() for task, label in padded.labels.items()}
        return replace(padded, image=padded.image[window].contiguous(), labels=labels)


def gain_over(
    baseline: Mapping[str, float], values: Mapping[str, float], rows: Dataset, recipe: EvaluationRecipe
) -> dict[str, float]:
    """`delta_m` in percent, each task by its metric or (see `measures`) its loss; empty where a number is missing."""
    by_task = measures(rows, recipe)
    if any(measure.name not in values for measure in by_task.values()):
        return {}
    directed = tuple(replace(task, lower_is_better=by_task[task.name].lower_is_better) for task in rows)
    ours, theirs = ({task: side[measure.name] for task, measure in by_task.items()} for side in (values, baseline))
    return {"delta_m": delta_m(replace(rows, tasks=directed), ours, theirs).value}


def baseline_scores(run: Path, dataset: str, rows: Dataset, recipe: EvaluationRecipe) -> dict[str, float]:
    """What a baseline run measured at its best checkpoint, by the names of measures.

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
    scores: dict[str, float] = {}
    for folder in about.get("parts", {"": "."}).values():
        scores |= _at_best(run / folder)
    for measure in measures(rows, recipe).values():
        if measure.name not in scores:
            raise UsageError(
                f"--baseline-run {run} has not measured {measure.name}; train it on the same tasks, with evaluation "
                "(and evaluation.boundary as here)"
            )
    return scores


def _at_best(run: Path) -> dict[str, float]:
    step = int(checkpoint_folder(run).resolve().name.rpartition("-")[2])
    at_step = [line for line in RunDirectory(run).metrics() if line.get("evaluation") and line["step"] == step]
    return {name: value for name, value in (at_step or [{}])[-1].items() if name.startswith(("metric/", "loss/"))}


BATCHES = 4
"""Of the evaluation's batch size, on which rep_sim is measured: spread evenly over the validation split."""


@torch.no_grad()
def draw_live_rep_sim(
    run: RunDirectory, student: nn.Module, live_teachers: LiveTeachers, held_out: HeldOut, standardised: Scales
) -> Path:
    """rep_sim of a fine-tuned student, as `rep_sim.png` and a line of `train.log`; by one rank alone.

    The mean map cosine of the student's aligned maps and its teachers', of the very same pixels, after the loss's own
    resize. A student of `standardised` targets is measured in its teachers' own units.
    """
    training = student.training
    student.eval()
    levels: tuple[int, ...] = ()
    cosines: dict[str, list[Tensor]] = {name: [] for name in live_teachers.teachers}
    for images in _batches(held_out):
        with held_out.accelerator.autocast():
            answers = student(images, tasks=()).teachers
        for name, targets in live_teachers(images).items():
            levels = answers[name].levels
            cosines[name].append(image_similarities(own_units(answers[name], standardised.get(name)), targets).double())
    student.train(training)
    by_level = {name: torch.cat(parts).mean(0).tolist() for name, parts in cosines.items()}
    count = sum(len(part) for part in next(iter(cosines.values())))
    means = ", ".join(f"{name} {sum(row) / len(row):.4f}" for name, row in by_level.items())
    run.log(f"rep_sim on {count} validation images: {means}")
    return draw_rep_sim(by_level, levels, run.figures / "rep_sim.png", images=count)


def _batches(held_out: HeldOut) -> Iterator[Tensor]:
    """Normalised images (B, 3, H, W) on the device."""
    loader, size = Centred(held_out.dataset, held_out.size), held_out.recipe.batch_size
    indices = spread(held_out.count, BATCHES * size)
    for start in range(0, len(indices), size):
        images = torch.stack([loader.load(index).image for index in indices[start : start + size]])
        yield images.to(held_out.accelerator.device)
