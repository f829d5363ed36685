"""How a run goes: steps, batch, optimiser, schedule, precision. Not hashed into any cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.settings import Config, Frozen, load_settings
from sak.errors import UsageError

# Learning rates as functions of the iteration: no optimiser inside, nothing to save, so resuming is exact.


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


Decay = Annotated[float, Field(ge=0, lt=1)]
SHARE = "share"
"""In an optimiser's group: its part of the learning rate."""

SEEDS = 2**31
"""Seeds are below this, so that a process's number can be added to one."""


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
    """The loop. `batch_size` is global: over all processes and accumulated parts.

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

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give epochs or steps, one of them")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not divide into {self.accumulate} accumulated parts")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))

    def learning_rates(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by step."""
        total, peak = self.total_steps(steps_per_epoch), self.optimiser.rate
        chosen = self.schedule
        if chosen.kind == "poly":
            return Poly(total, peak, chosen.power)
        if chosen.kind == "constant":
            return lambda iteration: peak
        warmup = chosen.warmup_steps
        if warmup is None:
            warmup = round(chosen.warmup_epochs * steps_per_epoch)
        return WarmupCosine(total, warmup, peak, chosen.final_rate, chosen.warmup_rate, chosen.delay)


def make_optimiser(
    model: nn.Module,
    config: OptimiserConfig,
    *,
    beside: nn.Module | None = None,
    shares: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over everything that trains, in one group; fused where there is a CUDA device.

    Parameters of `beside`, if it has any, make a second group without weight decay. Each share other than 1 makes a
    group of those of the model's parts, by their attributes' names, that learn at their share of the rate (`set_rate`).
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    fused = any(parameter.is_cuda for _, parameter in named)
    others = [] if beside is None else list(beside.parameters())
    by_share: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in named:
        by_share.setdefault((shares or {}).get(name.partition(".")[0], 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": found} if share == 1 else {"params": found, SHARE: share}
        for share, found in by_share.items()
        if found
    ]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=config.rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the step to come; a group with a share has its own part of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get(SHARE, 1.0)


# From a command's flags to its recipe: the file `config`, `--set` lines over it, the command's own flags over both.

LENGTHS = ("epochs", "steps")
TRAINING = ("batch_size", "precision", "seed")


def recipe_and_rest(
    kind: type[Config], flags: Mapping[str, Any], also: Mapping[str, Sequence[str]] | None = None
) -> tuple[Config, dict[str, Any]]:
    """The recipe that the flags `config`, `overrides` and those of the training ask for, and all flags that are left.

    `also` names further flags and the recipe's settings, by dotted names, that each stands for. A flag that is None
    was not given; paths become text, as `config.yaml` has them. UsageError, one line, where anything is wrong.
    """
    given = {
        name: str(value) if isinstance(value, Path) else value for name, value in flags.items() if value is not None
    }
    file, overrides = given.pop("config", None), given.pop("overrides", ())
    length = {name: given.pop(name) for name in LENGTHS if name in given}
    if len(length) > 1:
        raise UsageError("give --epochs or --steps, one of them")
    settings = {f"training.{name}": length.get(name) for name in LENGTHS if length}  # the one replaces the other
    settings |= {f"training.{name}": given.pop(name) for name in TRAINING if name in given}
    for flag, names in (also or {}).items():
        if flag in given:
            settings |= dict.fromkeys(names, given.pop(flag))
    return load_settings(kind, Path(file) if file is not None else None, overrides, settings), given
