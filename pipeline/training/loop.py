"""The one training loop. A stage gives it a model, a source of batches and a step; it knows nothing of their science.

accelerate has the devices, DDP, precision and gradient scaling. Batches and the schedule stay ours: prepared by it,
batches would be shared out a second time and the schedule stepped once a process.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn

from pipeline.training.agreement import Agreement
from pipeline.training.checkpoint import (
    CheckpointError,
    TrainingState,
    load_optimiser,
    new_checkpoint,
    optimiser_state,
    point,
    random_state,
    read_state,
    remove_unused,
    set_random_state,
    step_folder,
    write_state,
)
from pipeline.training.config import TrainingConfig, make_optimiser
from pipeline.training.devices import make_accelerator as make_accelerator
from pipeline.training.ema import Ema
from pipeline.training.protocols import Batch as Batch
from pipeline.training.protocols import BatchSource as BatchSource
from pipeline.training.protocols import Evaluate as Evaluate
from pipeline.training.protocols import FitResult as FitResult
from pipeline.training.protocols import Hooks as Hooks
from pipeline.training.protocols import Step as Step
from pipeline.training.protocols import StepResult as StepResult
from pipeline.training.protocols import TrainingError as TrainingError
from pipeline.training.run import RunDirectory
from pipeline.training.speaker import Speaker
from pipeline.training.stop import StopRequest
from pipeline.training.window import Window

EMA_FOLDER = "ema"


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
        self.evaluated = -1
        set_seed(config.seed, device_specific=True)
        self.plain = model.to(accelerator.device)
        self.optimiser = make_optimiser(self.plain, config.optimiser)
        self.ema = Ema(self.plain, config.ema) if config.ema is not None else None
        compiled = torch.compile(self.plain) if config.compile else self.plain
        self.model, self.prepared = accelerator.prepare(compiled, self.optimiser)
        self.window = Window()
        self.agreement = Agreement(accelerator, run.checkpoints)
        self.speaker = Speaker(run, hooks, accelerator)

    def resume(self) -> None:
        """Go on from `checkpoints/last`; CheckpointError where there is none."""
        folder = (self.run.checkpoints / "last").resolve()
        if not folder.is_dir():
            raise CheckpointError(f"{self.run.root} has no checkpoint yet; start it again with --overwrite")
        state = read_state(folder)
        self.hooks.load_model(self.plain, folder)
        load_optimiser(self.optimiser, state.tensors, state.values["optimiser"])
        if self.ema is not None:
            averaged = folder / EMA_FOLDER
            self.hooks.load_model(self.ema.model, averaged if averaged.is_dir() else folder)
        if self.accelerator.scaler is not None and state.values.get("scaler"):
            self.accelerator.scaler.load_state_dict(state.values["scaler"])
        self.step, self.best, self.evaluated = state.step, state.values["best"], state.values["evaluated"]
        own = folder / f"random-{self.accelerator.process_index}.safetensors"
        if own.is_file():
            set_random_state(load_file(own))
        if self.accelerator.is_main_process:
            self.run.forget_after(self.step)
        self.accelerator.wait_for_everyone()

    def __call__(self) -> FitResult:
        """Train to the end, or until SIGINT or SIGTERM; either way the last step is saved."""
        with StopRequest() as stop:
            self.speaker.begin(self.step, self.total)
            if self._evaluate() and self.step > 0:
                self._name_best()
            with _closed(self.source.start_at(self.step)) as batches:
                while self.step < self.total and not self.agreement.stopping:
                    self._one_step(batches, stop)
                    self._look_up()
            stopped = self.agreement.stopping and (self.step < self.total or self._evaluation_due())
            last = self.run.checkpoints / "last"
            return FitResult(self.step, stopped, self.window.last, last, stop.signal if stopped else None)

    def _one_step(self, batches: Iterator[Batch], stop: StopRequest) -> None:
        waited = time.perf_counter()
        batch = next(batches)
        waited = 0.0 if self.agreement.busy() else time.perf_counter() - waited
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
        self.step += 1
        loss = self.window.add(results, waited, rate)
        self.agreement.submit(self.step, batch.keys, loss, stop.wanted)
        batch.release()

    def _gradients(self, batch: Batch) -> list[StepResult]:
        """Gradients travel between processes with the last part of a batch alone."""
        parts = batch.split(self.config.accumulate) if self.config.accumulate > 1 else [batch]
        results = []
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    result = self.take_step(self.model, part)
                self.accelerator.backward(result.loss / len(parts))
            results.append(result)
        return results

    def _look_up(self) -> None:
        """What is due after a step: lines, measurements, checkpoints."""
        stopping, ending = self.agreement.read(), self.step == self.total
        if self._due(self.config.log_every) or stopping or ending:
            self._log()
        self.speaker.show(self.step)
        better = not stopping and self._evaluate()
        if self._due(self.config.checkpoint_every) or stopping or ending or better:
            with self.window.aside():
                self._save(best=better)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _evaluation_due(self) -> bool:
        """A measurement that a stop has put off is due when the run goes on."""
        if self.hooks.evaluate is None or self.evaluated == self.step:
            return False
        if self.step == 0:
            return self.hooks.evaluate_first
        return self._due(self.config.evaluate_every) or self.step == self.total

    def _log(self) -> None:
        values = self.window.close(self.accelerator, self.config.batch_size)
        self.speaker.tell(self.step, {"epoch": self.step / self.source.steps_per_epoch, **values})

    def _evaluate(self) -> bool:
        """Measure where it is due; whether the result is the best so far."""
        if not self._evaluation_due() or self.hooks.evaluate is None:
            return False
        self.agreement.settle()
        model = self.ema.model if self.ema is not None else self.plain
        training = model.training
        model.eval()
        with self.window.aside():
            values = dict(self.hooks.evaluate(model, self.step))
        model.train(training)
        self.evaluated = self.step
        self.speaker.tell(self.step, {"evaluation": True, **values})
        self.window.last = {**self.window.last, **values}
        found = values.get(self.hooks.best)
        if found is None or self.step == 0:
            return False
        better = self.best is None or (found < self.best if self.hooks.best_is_lower else found > self.best)
        self.best = found if better else self.best
        return better

    def _save(self, *, best: bool) -> None:
        self.agreement.settle()
        random = gather_object([to_bytes(random_state())])
        if self.accelerator.is_main_process:
            with new_checkpoint(self.run.checkpoints, self.step) as folder:
                self._fill(folder, random)
            point(self.run.checkpoints, "last", step_folder(self.run.checkpoints, self.step))
            if best:
                self._name_best()
            remove_unused(self.run.checkpoints)
        self.accelerator.wait_for_everyone()

    def _fill(self, folder: Path, random: list[bytes]) -> None:
        self.hooks.save_model(self.plain, folder)
        if self.ema is not None:
            self.hooks.save_model(self.ema.model, folder / EMA_FOLDER)
        for process, state in enumerate(random):
            (folder / f"random-{process}.safetensors").write_bytes(state)
        write_state(folder, self._state())

    def _name_best(self) -> None:
        if self.accelerator.is_main_process:
            point(self.run.checkpoints, "best", step_folder(self.run.checkpoints, self.step))

    def _state(self) -> TrainingState:
        tensors, values = optimiser_state(self.optimiser)
        scaler: Any = self.accelerator.scaler
        rest: Mapping[str, Any] = {
            "optimiser": values,
            "best": self.best,
            "evaluated": self.evaluated,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        return TrainingState(self.step, tensors, rest)


def _closed(batches: Iterator[Batch]) -> AbstractContextManager[Iterator[Batch]]:
    """Generators are closed at the end, so that their threads and processes end with the loop."""
    return closing(batches) if isinstance(batches, Generator) else nullcontext(batches)
