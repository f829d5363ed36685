"""What fine-tuning minimises: the tasks' weighted losses and terms beside them, and the step that computes it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.task_batches import TaskBatch
from pipeline.train.protocols import Step, StepResult
from sak.losses.distillation import DistillationLoss
from sak.losses.projection import Targets
from sak.losses.tasks import Average, alone, task_losses
from sak.student.heads import Decoded
from sak.student.student import Student, StudentOutput
from sak.tasks import Dataset
from sak.variants.weighting import Weighting


@dataclass(frozen=True)
class Term:
    """A part of the loss beside the tasks' own, and what the log says of it by name."""

    loss: Tensor
    parts: Mapping[str, Tensor]


LossTerm = Callable[[Any, Mapping[str, Targets]], Term | None]
"""(the network's output, teacher -> targets) -> the term, or None where this network or batch has none."""


@dataclass(frozen=True)
class Distillation:
    """`gamma` times the distillation loss against the batch's targets (paper, section 3.4)."""

    loss: DistillationLoss
    gamma: float = 1.0

    def __call__(self, output: StudentOutput, targets: Mapping[str, Targets]) -> Term | None:
        """See LossTerm."""
        if not targets:
            return None
        losses = self.loss({name: output.teachers[name] for name in targets}, targets)
        return Term(self.gamma * losses.total, {"distillation": losses.total, **losses.by_level()})


@dataclass(frozen=True)
class Balancing:
    """`weight` times the imbalance of a decoder's experts (MLoRE)."""

    weight: float

    def __call__(self, output: Decoded, targets: Mapping[str, Targets]) -> Term | None:
        """See LossTerm."""
        del targets
        if output.imbalance is None:
            return None
        return Term(self.weight * output.imbalance, {"imbalance": output.imbalance})


@dataclass(frozen=True)
class Objective:
    """The loss of fine-tuning: the tasks' losses as `weighting` has them, plus `terms`.

    `average` is over the ranks that share a batch, for the counts of valid pixels.
    """

    rows: Dataset
    weighting: Weighting
    terms: Sequence[LossTerm] = ()
    average: Average = alone


def finetune_step(objective: Objective) -> Step[TaskBatch]:
    """Images through the network, its predictions against the labels, its answers to the teachers against theirs.

    A decoder's preliminary predictions have their task's loss and weight too: they are added to the task's own.
    """

    def step(model: nn.Module, batch: TaskBatch) -> StepResult:
        # The teachers run here: their memory is free again before the network's activations fill it.
        targets = batch.targets
        output = model(batch.images, **({} if batch.noise is None else {"noise": batch.noise}))
        tasks = task_losses(objective.rows, output.tasks, batch.labels, average=objective.average)
        early = {}
        if output.preliminary:
            early = task_losses(objective.rows, output.preliminary, batch.labels, average=objective.average)
        both = {name: loss + early[name] if name in early else loss for name, loss in tasks.items()}
        weights = objective.weighting.logged(both)
        weighted: dict[str, Tensor] = objective.weighting(both)
        total = torch.stack(list(weighted.values())).sum()
        parts = {"tasks": total, **{f"task/{name}": loss for name, loss in tasks.items()}, **weights}
        parts |= {f"preliminary/{name}": loss for name, loss in early.items()}
        rest: Tensor | None = None
        for term in filter(None, (make(output, targets) for make in objective.terms)):
            total, rest = total + term.loss, term.loss if rest is None else rest + term.loss
            parts |= term.parts
        return StepResult(total, {name: value.detach() for name, value in parts.items()}, weighted, rest)

    return step


def without_unused(model: nn.Module, teachers: Collection[str]) -> nn.Module:
    """Aligners to other teachers than these learn nothing: frozen, no rank waits for their gradients."""
    for level in model.aligners.values() if isinstance(model, Student) else ():
        for name, aligner in level.items():  # type: ignore[operator]  # a ModuleDict holds ModuleDicts here
            if name not in teachers:
                aligner.requires_grad_(False)
    return model


def counts_of_all(ranks: int) -> Average:
    """The mean of a count over the ranks."""
    if ranks == 1:
        return alone

    def average(count: Tensor) -> Tensor:
        total = count.detach().double()
        torch.distributed.all_reduce(total)
        return total / ranks

    return average
