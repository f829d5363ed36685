"""Learning rates as functions of the iteration: no optimiser inside, nothing to save, so resuming is exact."""

from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

from sak.errors import UsageError


class Schedule(Protocol):
    """The learning rate to use at an iteration, counted from 0."""

    def __call__(self, iteration: int) -> float:
        """The rate at `iteration`."""
        ...


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `warmup_rate` to `rate`, then half a cosine down to `final_rate`, where it stays.

    Published code: the rate is set after an iteration from that iteration's number, so iteration k runs at
    f(max(k - 1, 0)) and the first rate is used twice. `delay=0` is the paper's schedule, without that step.

    Attributes:
        iterations: of the whole run, warm-up included.
        warmup_iterations: of them, the linear ones.
        rate: the highest.
        final_rate: at the end of the cosine.
        warmup_rate: at iteration 0.
        delay: iterations by which the schedule lags.
    """

    iterations: int
    warmup_iterations: int
    rate: float = 1e-3
    final_rate: float = 1e-5
    warmup_rate: float = 1.25e-7
    delay: int = 1

    def __post_init__(self) -> None:
        """Refuse a warm-up that leaves nothing for the cosine."""
        if not 0 <= self.warmup_iterations < self.iterations:
            raise UsageError(
                f"a warm-up of {self.warmup_iterations} iterations does not fit into a run of {self.iterations}; "
                "train longer, or warm up for fewer epochs"
            )
        if self.delay < 0:
            raise UsageError(f"a schedule cannot run ahead: delay is {self.delay}, and must be 0 or more")

    def __call__(self, iteration: int) -> float:
        """The rate at `iteration`, counted from 0."""
        time = max(iteration - self.delay, 0)
        if time < self.warmup_iterations:
            return self.warmup_rate + time * (self.rate - self.warmup_rate) / self.warmup_iterations
        length = self.iterations - self.warmup_iterations
        share = min((time - self.warmup_iterations) / length, 1.0)
        return self.final_rate + 0.5 * (self.rate - self.final_rate) * (1 + cos(pi * share))


@dataclass(frozen=True)
class Poly:
    """rate * (1 - k / iterations)^power at iteration k, zero from `iterations` on (fine-tuning)."""

    iterations: int
    rate: float = 2e-5
    power: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a run without iterations."""
        if self.iterations < 1:
            raise UsageError(f"a run needs at least one iteration, got {self.iterations}")

    def __call__(self, iteration: int) -> float:
        """The rate at `iteration`, counted from 0."""
        return self.rate * max(1 - iteration / self.iterations, 0.0) ** self.power
