"""What the loop is given by a stage, and what it gives back: batches, the step, hooks, the result."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

from torch import Tensor, nn

from pipeline.progress import Update
from sak.errors import SakError


class TrainingError(SakError):
    """Training cannot go on: a loss or a weight is not finite."""


class Batch(Protocol):
    """This rank's part of one global batch."""

    keys: Sequence[str]

    def split(self, parts: int) -> Sequence[Self]:
        """Equal parts for gradient accumulation."""

    def release(self) -> None:
        """Nothing of the batch is used any more."""


B = TypeVar("B", bound=Batch)
BOut = TypeVar("BOut", bound=Batch, covariant=True)


class BatchSource(Protocol[BOut]):
    """Where batches come from: a pure function of the step, so that a step is all there is to resume."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""

    def start_at(self, step: int) -> Iterator[BOut]:
        """Endless batches of this rank from global step `step` on, on its device; closed where it can be."""


@dataclass(frozen=True)
class StepResult:
    """A loss (mean over the batch) and its parts, detached, by name.

    `objectives`, by task, and `rest` sum to the loss; only a run that combines gradients task by task needs them.
    """

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    objectives: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Tensor | None = None


Step = Callable[[nn.Module, B], StepResult]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True)
class Hooks:
    """What a stage may add to the loop.

    `evaluate` measures the model (the averaged one, where there is one); `best` names the number among its
    measurements that makes a checkpoint the best, `evaluate_first` measures before the first step too. `say` takes
    lines for the user, `progress` steps; `remedy` says what to do where the loop waits for data. `saved` is called by
    the main rank after each checkpoint.
    """

    save_model: Callable[[nn.Module, Path], object]
    load_model: Callable[[nn.Module, Path], object]
    evaluate: Evaluate | None = None
    best: str = "loss"
    best_is_lower: bool = True
    progress: Update | None = None
    evaluate_first: bool = False
    say: Callable[[str], None] | None = None
    remedy: Callable[[], str] | None = None
    saved: Callable[[], object] | None = None


@dataclass(frozen=True)
class FitResult:
    """How a run ended: steps done, whether (and by which signal) it was stopped, its last numbers, its checkpoint."""

    step: int
    stopped: bool
    metrics: Mapping[str, float]
    checkpoint: Path
    signal: int | None = None
