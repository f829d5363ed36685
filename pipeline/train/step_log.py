"""A run's log: means over the steps since the last line, into its files and trackers, and to the user."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.train.protocols import Hooks, StepResult
from pipeline.train.run import RunDirectory

WAIT_WARNING = 0.05
"""A larger share of the time spent waiting for data is warned of."""


class Window:
    """Sums over the steps since the last line."""

    def __init__(self) -> None:
        self.last: Mapping[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._steps = 0
        self._start = time.perf_counter()
        self._waited = self._rate = 0.0

    def add(self, results: Sequence[StepResult], waited: float, rate: float) -> Tensor:
        """Count one step, made of one result or of several accumulated ones; returns its loss, on the device."""
        values = [torch.stack([result.loss.detach(), *result.parts.values()]).double() for result in results]
        step = values[0] if len(values) == 1 else torch.stack(values).mean(0)
        self._names = ("loss", *results[0].parts)
        self._sum = step if self._sum is None else self._sum + step
        self._steps += 1
        self._waited += waited
        self._rate = rate
        return step[0]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs in the block is no training: its time counts neither for the rate nor for the share of waiting."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def close(self, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
        """Means over the window and all ranks, images a second, and the share of time spent waiting for data.

        The share is that of the rank that waited longest: the others wait for it in the step.
        """
        if self._sum is None:
            return {}
        means = self._sum / self._steps
        waited = self._waited
        if accelerator.num_processes > 1:
            means = accelerator.reduce(means, "mean")
            everyone = accelerator.gather(torch.tensor([waited], device=means.device, dtype=torch.float64))
            waited = float(everyone.max())
        values = dict(zip(self._names, means.tolist(), strict=True))  # waits for the device
        seconds = time.perf_counter() - self._start
        values |= {
            "learning_rate": self._rate,
            "images_per_second": self._steps * batch_size / seconds,
            "data_wait": min(1.0, waited / seconds),
        }
        self._begin()
        self.last = values
        return values


class StepLog:
    """Measurements, progress and warnings of a run; silent on all ranks but the main one."""

    def __init__(self, run: RunDirectory, hooks: Hooks, accelerator: Accelerator) -> None:
        self._run, self._hooks, self._accelerator = run, hooks, accelerator
        self._first = self._total = self._lines = 0
        self._note = ""
        self._warned = False

    def begin(self, step: int, total: int) -> None:
        """The loop starts at `step`; progress counts from there, so that its rate is this session's."""
        self._first, self._total = step, total
        if self._accelerator.is_main_process:
            self._run.log(f"from step {step} to {total} on {self._accelerator.num_processes} x "
                          f"{self._accelerator.device.type}")  # fmt: skip

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Measurements after a step: into `metrics.jsonl`, `train.log` and the trackers."""
        if not self._accelerator.is_main_process:
            return
        self._run.record({"step": step, **values})
        numbers = {name: value for name, value in values.items() if not isinstance(value, bool)}
        self._run.log(", ".join([f"step {step}", *(f"{name} {value:.6g}" for name, value in numbers.items())]))
        if self._accelerator.trackers:
            self._accelerator.log(numbers, step=step)
        if "data_wait" in values:
            self._lines += 1
            self._note = (
                f"step {step}, loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s, "
                f"data wait {100 * values['data_wait']:.0f} %"
            )
            self._warn(values["data_wait"])

    def say(self, line: str) -> None:
        """A line for the user, into `train.log` too."""
        if not self._accelerator.is_main_process:
            return
        self._run.log(line)
        if self._hooks.say is not None:
            self._hooks.say(line)

    def show(self, step: int) -> None:
        """Progress, with the last measurements."""
        if self._hooks.progress is not None and self._accelerator.is_main_process:
            self._hooks.progress(step - self._first, self._total - self._first, self._note)

    def _warn(self, share: float) -> None:
        """Once a session, and not of its first line, in which threads and processes are still starting."""
        if self._warned or self._lines < 2 or share <= WAIT_WARNING:
            return
        self._warned = True
        remedy = f": {self._hooks.remedy()}" if self._hooks.remedy is not None else ""
        self.say(f"warning: {100 * share:.0f} % of the time is spent waiting for data{remedy}")
