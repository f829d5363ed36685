"""Saving a run and resuming it: when a checkpoint is written, linked and read. How it lies on disk: checkpoint.py.

All ranks call the same methods at the same steps, because generators are gathered; the main one writes.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.train.checkpoint import (
    CheckpointError,
    TrainingState,
    change_values,
    load_optimiser,
    new_checkpoint,
    optimiser_state,
    point,
    random_state,
    read_state,
    read_tensors,
    remove_unused,
    seed_anew,
    set_random_state,
    step_folder,
    write_state,
)
from pipeline.train.protocols import Hooks, TrainingError
from sak.checkpoints.store import load_student, save_student
from sak.errors import UsageError
from sak.student.student import Student

EMA_FOLDER = "ema"


class Ema:
    """An exponential moving average of a model's weights: `model` is the averaged copy; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are now: a = decay * a + (1 - decay) * w."""
        averaged: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
        self._average(averaged, current, 0)
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)


@dataclass(frozen=True)
class Progress:
    """Steps done, the step that was measured last (-1: none), and the best measurement so far."""

    step: int = 0
    evaluated: int = -1
    best: float | None = None


def check_finite(model: nn.Module, step: int) -> None:
    """TrainingError that names the first weight which is not finite."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
    if not weights:
        return
    finite = torch.stack([weight.detach().isfinite().all() for _, weight in weights]).tolist()
    broken = [name for (name, _), good in zip(weights, finite, strict=True) if not good]
    if broken:
        raise TrainingError(
            f"step {step}: {len(broken)} of {len(weights)} weights are not finite, first {broken[0]}; nothing was "
            "saved, `last` is the checkpoint before; lower training.optimiser.rate or set training.clip_norm"
        )


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints of these parts into a folder and fills the parts from the last one.

    `companion` trains beside the model (a weighting of losses); `seed` is the run's.
    """

    checkpoints: Path
    hooks: Hooks
    accelerator: Accelerator
    model: nn.Module
    ema: Ema | None
    optimiser: torch.optim.Optimizer
    companion: nn.Module
    seed: int

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; `last` leads to it, and those that nothing leads to any more go.

        TrainingError, and nothing is written, where a weight is not finite: the checkpoint before stays the last.
        """
        check_finite(self.model, progress.step)
        random = gather_object([to_bytes(random_state())])
        if self.accelerator.is_main_process:
            with new_checkpoint(self.checkpoints, progress.step) as folder:
                self._fill(folder, progress, random)
            point(self.checkpoints, "last", step_folder(self.checkpoints, progress.step))
            remove_unused(self.checkpoints)
        self.accelerator.wait_for_everyone()

    def measured(self, progress: Progress, *, best: bool) -> None:
        """The checkpoint of this step was measured: note it there; `best` leads to it if it is."""
        if not self.accelerator.is_main_process:
            return
        folder = step_folder(self.checkpoints, progress.step)
        if best:
            point(self.checkpoints, "best", folder)
            remove_unused(self.checkpoints)
        change_values(folder, evaluated=progress.evaluated, best=progress.best)

    def load(self) -> tuple[Progress, int]:
        """Fill the parts from `last`: where the run stands, and how many ranks saved it; CheckpointError if none.

        Generators go on where they were; with another number of ranks they start anew from seed, step and rank.
        """
        folder = (self.checkpoints / "last").resolve()
        if not folder.is_dir():
            raise CheckpointError(f"{self.checkpoints.parent} has no checkpoint yet; start it again with --overwrite")
        state = read_state(folder)
        self.hooks.load_model(self.model, folder)
        load_optimiser(self.optimiser, state.tensors, state.values["optimiser"])
        _load_companion(self.companion, state.tensors)
        if self.ema is not None:
            averaged = folder / EMA_FOLDER
            self.hooks.load_model(self.ema.model, averaged if averaged.is_dir() else folder)
        if self.accelerator.scaler is not None and state.values.get("scaler"):
            self.accelerator.scaler.load_state_dict(state.values["scaler"])
        ranks = self._load_random(folder, state.step)
        return Progress(state.step, state.values["evaluated"], state.values["best"]), ranks

    def _load_random(self, folder: Path, step: int) -> int:
        ranks, rank = len(list(folder.glob("random-*.safetensors"))), self.accelerator.process_index
        if ranks == self.accelerator.num_processes:
            set_random_state(read_tensors(folder / f"random-{rank}.safetensors"))
        else:
            seed_anew(self.seed, step, rank)
        return ranks

    def _fill(self, folder: Path, progress: Progress, random: list[bytes]) -> None:
        self.hooks.save_model(self.model, folder)
        if self.ema is not None:
            self.hooks.save_model(self.ema.model, folder / EMA_FOLDER)
        for rank, state in enumerate(random):
            (folder / f"random-{rank}.safetensors").write_bytes(state)
        tensors, values = optimiser_state(self.optimiser)
        tensors |= {f"weighting.{name}": value for name, value in self.companion.state_dict().items()}
        scaler = self.accelerator.scaler
        plain = {
            "optimiser": values,
            "best": progress.best,
            "evaluated": progress.evaluated,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        write_state(folder, TrainingState(progress.step, tensors, plain))


def _load_companion(companion: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what a checkpoint kept of it; a companion without a state leaves another's alone."""
    if companion.state_dict():
        kept = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("weighting.")}
        companion.load_state_dict(kept)


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a student's checkpoint: a run's `Hooks.save_model`."""
    save_student(_student(model), folder)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a student that is there; UsageError where it is another student."""
    student, saved = _student(model), load_student(folder)
    try:
        student.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{folder} holds another student than the recipe asks for; put the recipe back, or start a new run"
        ) from error


def _student(model: nn.Module) -> Student:
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    return model
