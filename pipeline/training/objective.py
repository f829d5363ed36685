"""What fine-tuning minimises: gamma * distillation + the tasks' losses, and the step that computes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.data.task_batches import Noise
from pipeline.training.loop import Batch, Step, StepResult
from sak.losses.distillation import DistillationLoss
from sak.losses.targets import Targets
from sak.losses.tasks import Average, alone, task_losses
from sak.losses.weighting import Weighting
from sak.student import Student
from sak.student.student import StudentOutput
from sak.tasks import Dataset


@runtime_checkable
class Exercise(Protocol):
    """What the step needs of a batch: images (B, 3, H, W), labels by task, targets by teacher, the routers' noise."""

    @property
    def images(self) -> Tensor:
        """Normalised."""

    @property
    def labels(self) -> Mapping[str, Tensor]:
        """Task -> (B, C, H, W)."""

    @property
    def targets(self) -> Mapping[str, Targets]:
        """Teacher -> targets; empty without teachers."""

    @property
    def noise(self) -> Noise | None:
        """Level -> task -> noise; None where the network has no routers."""


@dataclass(frozen=True)
class Objective:
    """The loss of fine-tuning (paper, section 3.4).

    Attributes:
        rows: the tasks and their weights.
        distillation: against the batch's targets, where it has any.
        gamma: of the distillation.
        average: over the processes that share a batch, for the counts of valid pixels.
        balancing: of the imbalance of a decoder's experts, where it has any.
        weighting: of the tasks' losses; None: the rows' fixed weights.
        apart: keep the tasks' terms apart, as combining gradients needs them.
    """

    rows: Dataset
    distillation: DistillationLoss
    gamma: float = 1.0
    average: Average = alone
    balancing: float = 0.0
    weighting: Weighting | None = None
    apart: bool = False

    def terms(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task -> weighted loss; they sum to the tasks' part of the loss."""
        if self.weighting is None:
            return {name: self.rows.weights[name] * loss for name, loss in losses.items()}
        return self.weighting(losses)

    def told(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights as they are now, for the log; none where they are fixed."""
        if self.weighting is None:
            return {}
        return {f"weight/{name}": weight for name, weight in self.weighting.weights(losses).items()}


def finetune_step(objective: Objective) -> Step:
    """Images through the network, its predictions against the labels, its answers to the teachers against theirs.

    A decoder's preliminary predictions have their task's loss and weight too: they are added to the task's own.
    """

    def step(model: nn.Module, batch: Batch) -> StepResult:
        if not isinstance(batch, Exercise):
            raise TypeError(f"a fine-tuning batch, not {type(batch).__name__}")
        output = model(batch.images, **({} if batch.noise is None else {"noise": batch.noise}))
        tasks = task_losses(objective.rows, output.tasks, batch.labels, average=objective.average)
        early = preliminary_losses(objective, output, batch.labels)
        losses_of = {name: loss + early[name] if name in early else loss for name, loss in tasks.tasks.items()}
        told = objective.told(losses_of)
        terms = objective.terms(losses_of)
        plain = objective.weighting is None and not early
        total = tasks.total if plain else torch.stack(list(terms.values())).sum()
        parts = {"tasks": total, **{f"task/{name}": loss for name, loss in tasks.tasks.items()}, **told}
        parts |= {f"preliminary/{name}": loss for name, loss in early.items()}
        rest = None
        if batch.targets:
            answers = {name: output.teachers[name] for name in batch.targets}
            losses = objective.distillation(answers, batch.targets)
            rest = objective.gamma * losses.total
            total = total + rest
            parts |= {"distillation": losses.total, **losses.by_level()}
        if isinstance(output, StudentOutput) and output.imbalance is not None:
            parts |= {"imbalance": output.imbalance}
            pull = objective.balancing * output.imbalance
            total, rest = total + pull, pull if rest is None else rest + pull
        detached = {name: value.detach() for name, value in parts.items()}
        return StepResult(total, detached, terms, rest) if objective.apart else StepResult(total, detached)

    return step


def preliminary_losses(objective: Objective, output: Any, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Task -> the loss of the decoder's earlier guess; empty where there is none."""
    if not isinstance(output, StudentOutput) or not output.preliminary:
        return {}
    return task_losses(objective.rows, output.preliminary, labels, average=objective.average).tasks


def without_unused(model: nn.Module, taught_by: Mapping[str, object]) -> nn.Module:
    """Aligners to teachers whose answers are not wanted learn nothing: frozen, no process waits for their gradients."""
    for level in model.aligners.values() if isinstance(model, Student) else ():
        for name, aligner in level.items():  # type: ignore[operator]  # a ModuleDict holds ModuleDicts here
            if name not in taught_by:
                aligner.requires_grad_(False)
    return model


def counts_of_all(processes: int) -> Average:
    """The mean of a count over the processes."""
    if processes == 1:
        return alone

    def average(count: Tensor) -> Tensor:
        total = count.detach().double()
        torch.distributed.all_reduce(total)
        return total / processes

    return average
