"""How a run goes: length, batch, optimiser, learning rate's schedule, precision. Not hashed into any cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.settings import LENGTHS, Frozen
from sak.errors import UsageError

Schedule = Callable[[int], float]
"""The learning rate of an iteration, counted from 0. It holds no state: nothing is saved, so resuming is exact."""


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


Decay = Annotated[float, Field(ge=0, lt=1)]
SHARE = "share"
"""In an optimiser's group: its part of the learning rate."""

SEEDS = 2**31
"""Seeds are below this, so that a rank can be added to one."""


class OptimiserConfig(Frozen):
    """AdamW; weight decay on all parameters, as the paper's runs have it."""

    rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Frozen):
    """`cosine` with linear warm-up (distillation), `poly` (fine-tuning), or `constant`; rates are absolute.

    `warmup_steps` goes before `warmup_epochs`. `delay` 1 is the published code's lag of one step, 0 the paper's.
    """

    kind: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: float = Field(default=2, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    delay: int = Field(default=1, ge=0)
    warmup_rate: float = Field(default=1.25e-7, ge=0)
    final_rate: float = Field(default=1e-5, ge=0)
    power: float = Field(default=0.9, gt=0)


class TrainingConfig(Frozen):
    """The loop. `batch_size` is global: over all ranks and accumulated parts.

    Give `epochs` or `steps`, not both. `clip_norm`: largest gradient norm. `ema`: decay of an averaged copy of the
    weights. `checkpoint_every`, `evaluate_every` and `log_every` count steps; 0 is only at the end.
    """

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    compile: bool = False
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=1000, ge=0)
    evaluate_every: int = Field(default=0, ge=0)

    default_length: ClassVar[Mapping[str, int]] = {}

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, values: Any) -> Any:
        """Settings that name no length have the stage's."""
        named = not isinstance(values, dict) or any(values.get(name) is not None for name in LENGTHS)
        return values if named else {**values, **cls.default_length}

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give epochs or steps, one of them")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not divide into {self.accumulate} accumulated parts")
        return self

    def check_part(self, images: int) -> None:
        """UsageError where a rank's images of a batch do not divide into the accumulated parts."""
        if images % self.accumulate:
            raise UsageError(f"{images} images a process do not divide into {self.accumulate} accumulated parts")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))

    def learning_rates(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by step."""
        total, peak = self.total_steps(steps_per_epoch), self.optimiser.rate
        schedule, warmup = self.schedule, self.schedule.warmup_steps
        if schedule.kind == "poly":
            return Poly(total, peak, schedule.power)
        if schedule.kind == "constant":
            return lambda iteration: peak
        if warmup is None:
            warmup = round(schedule.warmup_epochs * steps_per_epoch)
        return WarmupCosine(total, warmup, peak, schedule.final_rate, schedule.warmup_rate, schedule.delay)


def make_optimiser(
    model: nn.Module,
    config: OptimiserConfig,
    *,
    companion: nn.Module | None = None,
    shares: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over everything that trains, in one group; fused where there is a CUDA device.

    Parameters of `companion`, if it has any, make a second group without weight decay. Each share other than 1 makes a
    group of those of the model's parts, by their attributes' names, that learn at their share of the rate (`set_rate`).
    """
    by_share: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_share.setdefault((shares or {}).get(name.partition(".")[0], 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": trained} if share == 1 else {"params": trained, SHARE: share}
        for share, trained in by_share.items()
        if trained
    ]
    fused = any(parameter.is_cuda for trained in by_share.values() for parameter in trained)
    beside = [] if companion is None else list(companion.parameters())
    if beside:
        groups.append({"params": beside, "weight_decay": 0.0})
    options = config.model_dump(exclude={"rate"})
    return torch.optim.AdamW(groups, lr=config.rate, **options, fused=fused or None)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the step to come; a group with a share has its own part of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get(SHARE, 1.0)
