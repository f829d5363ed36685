"""The one training loop. A stage gives it a model, a source of batches and a step; it knows nothing of their science.

accelerate has the devices, DDP, precision and gradient scaling. Batches and the schedule stay ours: prepared by it,
batches would be shared out a second time and the schedule stepped once a process.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.progress import Update
from pipeline.training.checkpoint import (
    CheckpointError,
    TrainingState,
    load_optimiser,
    optimiser_state,
    point,
    random_state,
    read_state,
    set_random_state,
    step_folder,
    write_state,
)
from pipeline.training.config import TrainingConfig, make_optimiser
from pipeline.training.ema import Ema
from pipeline.training.run import RunDirectory
from pipeline.training.stop import StopRequest
from sak.errors import SakError


class TrainingError(SakError):
    """Training cannot go on: a loss is not finite."""


class Batch(Protocol):
    """This process's part of one global batch."""

    keys: Sequence[str]

    def split(self, parts: int) -> "Sequence[Batch]":
        """Equal parts for gradient accumulation."""

    def release(self) -> None:
        """Nothing of the batch is used any more."""


class BatchSource(Protocol):
    """Where batches come from: a pure function of the step, so that a step is all there is to resume."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""

    def start_at(self, step: int) -> Iterator[Batch]:
        """Endless batches of this process from global step `step` on, on its device."""


@dataclass(frozen=True)
class StepResult:
    """A loss (mean over the batch) and its parts, detached, by name."""

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


Step = Callable[[nn.Module, Batch], StepResult]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True)
class Hooks:
    """What a stage may add: evaluation with the name of the number that makes a checkpoint `best` and its direction."""

    save_model: Callable[[nn.Module, Path], object]
    load_model: Callable[[nn.Module, Path], object]
    evaluate: Evaluate | None = None
    best: str = "loss"
    best_is_lower: bool = True
    progress: Update | None = None


@dataclass(frozen=True)
class FitResult:
    """How a run ended: steps done, whether it was stopped from outside, its last measurements, its checkpoint."""

    step: int
    stopped: bool
    metrics: Mapping[str, float]
    checkpoint: Path


def make_accelerator(config: TrainingConfig, *, device: str) -> Accelerator:
    """Devices and precision; `device` is cpu or cuda, as resolved by the caller."""
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision]
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


class Fit:
    """One run of training, from its first or its last saved step to its end."""

    def __init__(
        self,
        model: nn.Module,
        source: BatchSource,
        step: Step,
        *,
        config: TrainingConfig,
        run: RunDirectory,
        hooks: Hooks,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.run, self.hooks, self.accelerator = config, run, hooks, accelerator
        self.source, self.take_step = source, step
        self.total = config.total_steps(source.steps_per_epoch)
        self.rates = config.learning_rates(source.steps_per_epoch)
        self.step = 0
        self.best: float | None = None
        set_seed(config.seed, device_specific=True)
        self.plain = model.to(accelerator.device)
        self.optimiser = make_optimiser(self.plain, config.optimiser)
        self.ema = Ema(self.plain, config.ema) if config.ema is not None else None
        compiled = torch.compile(self.plain) if config.compile else self.plain
        self.model, self.prepared = accelerator.prepare(compiled, self.optimiser)
        self.window = _Window()

    def resume(self) -> None:
        """Go on from `checkpoints/last`; CheckpointError where there is none."""
        folder = (self.run.checkpoints / "last").resolve()
        if not folder.is_dir():
            raise CheckpointError(f"{self.run.root} has no checkpoint yet; start it again with --overwrite")
        state = read_state(folder)
        self.hooks.load_model(self.plain, folder)
        load_optimiser(self.optimiser, state.tensors, state.values["optimiser"])
        if self.ema is not None:
            self.ema.load(state.tensors)
        if self.accelerator.scaler is not None and state.values.get("scaler"):
            self.accelerator.scaler.load_state_dict(state.values["scaler"])
        self.step, self.best = state.step, state.values.get("best")
        own = folder / f"random-{self.accelerator.process_index}.safetensors"
        if own.is_file():
            set_random_state(load_file(own))
        if self.accelerator.is_main_process:
            self.run.forget_after(self.step)
        self.accelerator.wait_for_everyone()

    def __call__(self) -> FitResult:
        """Train to the end, or until SIGINT or SIGTERM; either way the last step is saved."""
        saved = -1
        with StopRequest() as stop:
            batches = self.source.start_at(self.step)
            while self.step < self.total:
                self._one_step(batches)
                stopping = self._agree(stop.wanted)
                if self._due(self.config.log_every) or stopping:
                    self._log()
                if self._due(self.config.evaluate_every):
                    self._evaluate()
                if self._due(self.config.checkpoint_every) or stopping:
                    self._save()
                    saved = self.step
                if stopping:
                    break
        finished = self.step >= self.total
        if finished and self.hooks.evaluate is not None and not self._due(self.config.evaluate_every):
            self._evaluate()
        if saved != self.step or finished:
            self._save()
        return FitResult(self.step, not finished, self.window.last, self.run.checkpoints / "last")

    def _one_step(self, batches: Iterator[Batch]) -> None:
        waited = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - waited
        rate = self.rates(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        results = self._gradients(batch)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.plain.parameters(), self.config.clip_norm)
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.plain)
        self.window.add(results, batch.keys, waited, rate)
        batch.release()
        self.step += 1

    def _gradients(self, batch: Batch) -> list[StepResult]:
        parts = batch.split(self.config.accumulate) if self.config.accumulate > 1 else [batch]
        results = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with _synchronised(self.accelerator, self.model, last), self.accelerator.autocast():
                result = self.take_step(self.model, part)
            with _synchronised(self.accelerator, self.model, last):
                self.accelerator.backward(result.loss / len(parts))
            results.append(result)
        return results

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _agree(self, stop: bool) -> bool:
        """Whether any process was asked to stop; TrainingError on all where any loss of the step was not finite."""
        finite = self.window.last_is_finite()
        flags = torch.tensor([float(stop), float(not finite)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, "sum")
        if flags[1] > 0:
            keys = ", ".join(self.window.keys[:8]) + (" ..." if len(self.window.keys) > 8 else "")
            raise TrainingError(
                f"step {self.step}: the loss is not finite; the batch held {keys}; "
                f"the last whole checkpoint is in {self.run.checkpoints}; lower the rate or look at these images"
            )
        return bool(flags[0] > 0)

    def _log(self) -> None:
        values = self.window.close(self.accelerator, self.config.batch_size)
        line = {"step": self.step, "epoch": self.step / self.source.steps_per_epoch, **values}
        if self.accelerator.is_main_process:
            self.run.record(line)
            self.run.log(", ".join(f"{name} {_short(value)}" for name, value in line.items()))
            if self.hooks.progress is not None:
                wait = f"loss {values['loss']:.4f}, data wait {100 * values['data_wait']:.0f} %"
                self.hooks.progress(self.step, self.total, wait)

    def _evaluate(self) -> None:
        if self.hooks.evaluate is None:
            return
        model = self.ema.model if self.ema is not None else self.plain
        training = model.training
        model.eval()
        values = dict(self.hooks.evaluate(model, self.step))
        model.train(training)
        if self.accelerator.is_main_process:
            self.run.record({"step": self.step, "evaluation": True, **values})
        self.window.last = {**self.window.last, **values}
        found = values.get(self.hooks.best)
        if found is not None and (self.best is None or (found < self.best) == self.hooks.best_is_lower):
            self.best = found
            self._save(names=("last", "best"))

    def _save(self, names: Sequence[str] = ("last",)) -> None:
        folder = step_folder(self.run.checkpoints, self.step)
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        save_file(random_state(), folder / f"random-{self.accelerator.process_index}.safetensors")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.hooks.save_model(self.plain, folder)
            write_state(folder, self._state())
            for name in names:
                point(self.run.checkpoints, name, folder)
        self.accelerator.wait_for_everyone()

    def _state(self) -> TrainingState:
        tensors, values = optimiser_state(self.optimiser)
        if self.ema is not None:
            tensors |= self.ema.state()
        scaler: Any = self.accelerator.scaler
        rest = {"optimiser": values, "best": self.best, "scaler": scaler.state_dict() if scaler is not None else None}
        return TrainingState(self.step, tensors, rest)


def _synchronised(accelerator: Accelerator, model: nn.Module, last: bool) -> Any:
    """Gradients travel between processes with the last part of a batch alone."""
    from contextlib import nullcontext

    return nullcontext() if last else accelerator.no_sync(model)


def _short(value: float) -> str:
    return f"{value:.6g}"


class _Window:
    """Measurements since the last log line; losses stay on the device until then."""

    def __init__(self) -> None:
        self.keys: Sequence[str] = ()
        self.last: dict[str, float] = {}
        self._losses: list[Tensor] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._start = time.perf_counter()
        self._waited = 0.0
        self._rate = 0.0

    def add(self, results: Sequence[StepResult], keys: Sequence[str], waited: float, rate: float) -> None:
        self.keys, self._rate = keys, rate
        self._waited += waited
        self._losses.append(torch.stack([result.loss.detach().float() for result in results]).mean())
        for name in results[0].parts:
            mean = torch.stack([result.parts[name].detach().float() for result in results]).mean()
            self._parts.setdefault(name, []).append(mean)

    def last_is_finite(self) -> bool:
        return bool(torch.isfinite(self._losses[-1]))

    def close(self, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
        """Means over the window and all processes, images a second, and the share of time spent waiting for data."""
        seconds = time.perf_counter() - self._start
        steps = len(self._losses)
        means = {"loss": torch.stack(self._losses).mean()}
        means |= {name: torch.stack(values).mean() for name, values in self._parts.items()}
        if accelerator.num_processes > 1:
            means = accelerator.reduce(means, "mean")
        values = {name: float(value) for name, value in means.items()}
        values |= {
            "learning_rate": self._rate,
            "images_per_second": steps * batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self.__init__()  # type: ignore[misc]
        self.last = values
        return values
