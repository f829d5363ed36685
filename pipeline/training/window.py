"""Measurements between two log lines; losses stay on the device until a line is due."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.training.protocols import StepResult

WAIT_WORTH_TELLING = 0.05


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
        values = [torch.stack([each.loss.detach(), *each.parts.values()]).double() for each in results]
        step = values[0] if len(values) == 1 else torch.stack(values).mean(0)
        self._names = ("loss", *results[0].parts)
        self._sum = step if self._sum is None else self._sum + step
        self._steps += 1
        self._waited += waited
        self._rate = rate
        return step[0]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs in the block is no training: its time counts for neither rate nor share."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def close(self, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
        """Means over the window and all processes, images a second, and the share of time spent waiting for data.

        The share is that of the process that waited longest: the others wait for it in the step.
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
