"""Saving a run and going on with it: all processes call the same methods at the same steps, the main one writes."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

# An exponential moving average of a model's weights.


class Ema:
    """`model` is the averaged copy; buffers are copied as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are now: a = decay * a + (1 - decay) * w."""
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
        self._average(mine, theirs, 0)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)


EMA_FOLDER = "ema"


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


class Saver:
    """Writes checkpoints of these parts into a folder and fills the parts from the last one."""

    def __init__(
        self,
        checkpoints: Path,
        hooks: Hooks,
        accelerator: Accelerator,
        *,
        model: nn.Module,
        ema: Ema | None,
        optimiser: Any,
        seed: int,
        companion: nn.Module,
    ) -> None:
        self._checkpoints, self._hooks, self._accelerator = checkpoints, hooks, accelerator
        self._model, self._ema, self._optimiser, self._seed = model, ema, optimiser, seed
        self._companion = companion

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; `last` leads to it, and those that nothing leads to any more go.

        TrainingError, and nothing is written, where a weight is not finite: the checkpoint before stays the last.
        """
        check_finite(self._model, progress.step)
        random = gather_object([to_bytes(random_state())])
        if self._accelerator.is_main_process:
            with new_checkpoint(self._checkpoints, progress.step) as folder:
                self._fill(folder, progress, random)
            point(self._checkpoints, "last", step_folder(self._checkpoints, progress.step))
            remove_unused(self._checkpoints)
        self._accelerator.wait_for_everyone()

    def measured(self, progress: Progress, *, best: bool) -> None:
        """The checkpoint of this step was measured: note it there; `best` leads to it if it is."""
        if not self._accelerator.is_main_process:
            return
        folder = step_folder(self._checkpoints, progress.step)
        if best:
            point(self._checkpoints, "best", folder)
            remove_unused(self._checkpoints)
        change_values(folder, evaluated=progress.evaluated, best=progress.best)

    def load(self) -> tuple[Progress, int]:
        """Fill the parts from `last`: where the run stands, and how many processes saved it; CheckpointError if none.

        Generators go on where they were; with another number of processes they start anew from seed, step and process.
        """
        folder = (self._checkpoints / "last").resolve()
        if not folder.is_dir():
            raise CheckpointError(f"{self._checkpoints.parent} has no checkpoint yet; start it again with --overwrite")
        state = read_state(folder)
        self._hooks.load_model(self._model, folder)
        load_optimiser(self._optimiser, state.tensors, state.values["optimiser"])
        load_companion(self._companion, state.tensors)
        if self._ema is not None:
            averaged = folder / EMA_FOLDER
            self._hooks.load_model(self._ema.model, averaged if averaged.is_dir() else folder)
        if self._accelerator.scaler is not None and state.values.get("scaler"):
            self._accelerator.scaler.load_state_dict(state.values["scaler"])
        return Progress(state.step, state.values["evaluated"], state.values["best"]), self._go_on(folder, state.step)

    def _go_on(self, folder: Path, step: int) -> int:
        saved, here = len(list(folder.glob("random-*.safetensors"))), self._accelerator.process_index
        if saved == self._accelerator.num_processes:
            set_random_state(read_tensors(folder / f"random-{here}.safetensors"))
        else:
            seed_anew(self._seed, step, here)
        return saved

    def _fill(self, folder: Path, progress: Progress, random: list[bytes]) -> None:
        self._hooks.save_model(self._model, folder)
        if self._ema is not None:
            self._hooks.save_model(self._ema.model, folder / EMA_FOLDER)
        for process, state in enumerate(random):
            (folder / f"random-{process}.safetensors").write_bytes(state)
        tensors, values = optimiser_state(self._optimiser)
        scaler: Any = self._accelerator.scaler
        rest: Mapping[str, Any] = {
            "optimiser": values,
            "best": progress.best,
            "evaluated": progress.evaluated,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        write_state(folder, TrainingState(progress.step, {**tensors, **companion_state(self._companion)}, rest))


def companion_state(companion: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of the module that trains beside the model: a weighting of losses, if anything."""
    return {f"weighting.{name}": value for name, value in companion.state_dict().items()}


def load_companion(companion: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `companion_state` took out; one without a state leaves another's alone."""
    if companion.state_dict():
        kept = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("weighting.")}
        companion.load_state_dict(kept)


# A student in a run's checkpoints: the two functions that the loop is given.


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a student's checkpoint."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    save_student(model, folder)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a student that is there; UsageError where it is another student."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    saved = load_student(folder)
    try:
        model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{folder} holds another student than the recipe asks for; put the recipe back, or start a new run"
        ) from error
