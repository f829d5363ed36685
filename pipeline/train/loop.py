"""The one training loop. A stage gives it a model, a source of batches and a step; it knows nothing of their science.

accelerate has the devices, DDP, precision and gradient scaling. Batches and the schedule stay ours: prepared by it,
batches would be shared out a second time and the schedule stepped once a rank.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Generic

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from pipeline.train.backward import Backward, PlainBackward
from pipeline.train.config import TrainingConfig, make_optimiser, set_rate
from pipeline.train.devices import start_trackers
from pipeline.train.protocols import B, BatchSource, FitResult, Hooks, Step
from pipeline.train.resume import Ema, Progress, Saver
from pipeline.train.run import RunDirectory, RunOptions
from pipeline.train.step_log import StepLog, Window
from pipeline.train.stop import Agreement, StopRequest


class Fit(Generic[B]):
    """One run of training, from its first or its last saved step to its end.

    `backward` is how gradients come about, by default that of the whole loss; `shares` see `make_optimiser`.
    """

    def __init__(  # noqa: PLR0913 (what a run is made of)
        self,
        model: nn.Module,
        source: BatchSource[B],
        step: Step[B],
        *,
        config: TrainingConfig,
        run: RunDirectory,
        hooks: Hooks,
        accelerator: Accelerator,
        backward: Backward | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.run, self.hooks, self.accelerator = config, run, hooks, accelerator
        self.source, self.take_step = source, step
        self.total = config.total_steps(source.steps_per_epoch)
        self.rates = config.learning_rates(source.steps_per_epoch)
        self.step = 0
        self.best: float | None = None
        self.evaluated = -1
        self.fetched = False  # no batch yet
        set_seed(config.seed, device_specific=True)
        self.plain = model.to(accelerator.device)
        self.backward = backward or PlainBackward(accelerator)
        companion = self.backward.companion
        self.optimiser = make_optimiser(self.plain, config.optimiser, companion=companion, shares=shares)
        self.ema = Ema(self.plain, config.ema) if config.ema is not None else None
        compiled = torch.compile(self.plain) if config.compile else self.plain
        self.model, self.prepared = accelerator.prepare(compiled, self.optimiser)
        self.window = Window()
        self.agreement = Agreement(accelerator, run.checkpoints)
        self.log = StepLog(run, hooks, accelerator)
        self.saver = Saver(
            run.checkpoints, hooks, accelerator, self.plain, self.ema, self.optimiser, companion, config.seed
        )

    @property
    def measured_model(self) -> nn.Module:
        """What measurements look at: the averaged weights where there are any."""
        return self.ema.model if self.ema is not None else self.plain

    def begin(self, options: RunOptions, settings: Mapping[str, Any], **facts: Any) -> None:
        """Resume where asked to; write what the run is into `run.json` (`facts`) and to the trackers (`settings`)."""
        if options.start.resume:
            self.resume()
        if self.accelerator.is_main_process:
            self.run.describe(**facts)
        start_trackers(self.accelerator, f"sak-{facts['stage']}", settings)

    def resume(self) -> None:
        """Go on from `checkpoints/last`; CheckpointError where there is none.

        Batches and losses are those of the run that did not stop, bit for bit with as many ranks; with another number
        sums over ranks are rounded differently and random draws are new, which is logged.
        """
        progress, ranks = self.saver.load()
        self.step, self.evaluated, self.best = progress.step, progress.evaluated, progress.best
        if self.accelerator.is_main_process:
            self.run.forget_after(self.step, measured=self.evaluated)
        self.accelerator.wait_for_everyone()
        if ranks != self.accelerator.num_processes:
            self.log.say(
                f"processes: {ranks} until step {self.step}, {self.accelerator.num_processes} from here on; "
                "batches are the same, sums are rounded differently, random draws (noise, dropout) are new"
            )

    def __call__(self) -> FitResult:
        """Train to the end, or until SIGINT or SIGTERM; either way the last step is saved."""
        held = self.run.held() if self.accelerator.is_main_process else nullcontext()
        with held, StopRequest() as stop:
            self.log.begin(self.step, self.total)
            if self._evaluation_due():
                self._evaluate()
            with _closed(self.source.start_at(self.step)) as batches:
                while self.step < self.total and not self.agreement.stopping:
                    self._one_step(batches, stop)
                    self._after_step()
            stopped = self.agreement.stopping and (self.step < self.total or self._evaluation_due())
            last = self.run.checkpoints / "last"
            return FitResult(self.step, stopped, self.window.last, last, stop.signal if stopped else None)

    def _one_step(self, batches: Iterator[B], stop: StopRequest) -> None:
        batch, waited = self._next(batches)
        rate = self.rates(self.step)
        set_rate(self.optimiser, rate)
        parts = batch.split(self.config.accumulate) if self.config.accumulate > 1 else [batch]
        results = self.backward(self.take_step, self.model, parts, self.step)
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

    def _next(self, batches: Iterator[B]) -> tuple[B, float]:
        """The next batch and the seconds that training waited for it; the first one's are the readers' start."""
        start = time.perf_counter()
        if not self.fetched:
            self.fetched = True
            with self.window.paused():
                return next(batches), 0.0
        batch = next(batches)
        return batch, 0.0 if self.agreement.busy() else time.perf_counter() - start

    def _after_step(self) -> None:
        """Log, save and measure as is due; the measurement last, so that a run that dies in it loses no step."""
        stopping, ending = self.agreement.read(), self.step == self.total
        if self._due(self.config.log_every) or stopping or ending:
            self._log()
        self.log.show(self.step)
        measuring = not stopping and self._evaluation_due()
        if self._due(self.config.checkpoint_every) or stopping or ending or measuring:
            self._save()
        if measuring:
            self._evaluate()

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
        self.log.record(self.step, {"epoch": self.step / self.source.steps_per_epoch, **values})

    def _evaluate(self) -> None:
        """Measure, and note in the checkpoint of this step that it was done."""
        if self.hooks.evaluate is None:
            return
        self.agreement.settle()
        model = self.measured_model
        training = model.training
        model.eval()
        with self.window.paused():
            values = dict(self.hooks.evaluate(model, self.step))
        model.train(training)
        self.evaluated = self.step
        self.log.record(self.step, {"evaluation": True, **values})
        self.window.last = {**self.window.last, **values}
        if self.step > 0:
            better = self._is_best(values.get(self.hooks.best))
            self.saver.measured(self._progress(), best=better)

    def _is_best(self, value: float | None) -> bool:
        if value is None:
            return False
        better = self.best is None or (value < self.best if self.hooks.best_is_lower else value > self.best)
        self.best = value if better else self.best
        return better

    def _save(self) -> None:
        with self.window.paused():
            self.agreement.settle()
            self.saver.save(self._progress())
            if self.hooks.saved is not None and self.accelerator.is_main_process:
                self.hooks.saved()

    def _progress(self) -> Progress:
        return Progress(self.step, self.evaluated, self.best)


def _closed(batches: Iterator[B]) -> AbstractContextManager[Iterator[B]]:
    """Generators are closed at the end, so that their threads and worker processes end with the loop."""
    return closing(batches) if isinstance(batches, Generator) else nullcontext(batches)
