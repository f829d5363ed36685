"""A recipe of the demo's own models: the scenes they see, and how each is trained."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from pipeline.demo.teachers.pool import PoolSpec
from pipeline.settings import Frozen
from pipeline.train.config import OptimiserConfig, ScheduleConfig, TrainingConfig

MODELS = ("dino", "clip", "sam", "stem")


class PoolConfig(Frozen):
    """The scenes: how many, how large, from which seed; the last `held_out` of them are measured on alone."""

    seed: int = Field(default=0, ge=0)
    scenes: int = Field(default=6144, ge=128)
    size: int = Field(default=160, ge=64)
    held_out: int = Field(default=384, ge=32)

    def spec(self) -> PoolSpec:
        """The pool's."""
        return PoolSpec(self.seed, self.scenes, self.size)


class ModelTraining(TrainingConfig):
    """One model's; `scenes` is how many of the pool's it has, from the first on, held-out ones included; None: all."""

    scenes: int | None = Field(default=None, ge=128)

    @model_validator(mode="after")
    def _only_what_is_done(self) -> "ModelTraining":
        if self.steps is None or self.accumulate > 1 or self.ema is not None:
            raise ValueError("demo models train `steps` of whole batches: leave epochs, accumulate and ema out")
        return self


def _training(steps: int, batch_size: int, *, rate: float = 1e-3, scenes: int | None = None) -> ModelTraining:
    return ModelTraining(
        scenes=scenes,
        steps=steps,
        batch_size=batch_size,
        optimiser=OptimiserConfig(rate=rate, weight_decay=0.02),
        schedule=ScheduleConfig(warmup_steps=50, warmup_rate=1e-5, final_rate=1e-5, delay=0),
        clip_norm=3.0,
        log_every=20,
        evaluate_every=250,
        checkpoint_every=100,
    )


class DemoTeachersRecipe(Frozen):
    """Each model's training; the steps are what one thread does in 4 to 25 minutes.

    What a recipe does not say of a model stays as the shipped one was trained.
    """

    pool: PoolConfig = PoolConfig()
    dino: ModelTraining = _training(2000, 32)
    clip: ModelTraining = _training(1000, 64, scenes=3072)
    sam: ModelTraining = _training(600, 16, scenes=3072)
    stem: ModelTraining = _training(1000, 64)

    @model_validator(mode="before")
    @classmethod
    def _as_shipped(cls, values: Any) -> Any:
        return _over({name: cls.model_fields[name].default.model_dump() for name in MODELS}, values)

    @model_validator(mode="after")
    def _scenes_are_left(self) -> "DemoTeachersRecipe":
        for name in MODELS:
            pool = self.scenes(name)
            pool.spec()  # UsageError for a number of scenes that no pool has
            if pool.held_out >= pool.scenes:
                raise ValueError(f"{name} has {pool.scenes} scenes, {pool.held_out} held out: none is left to train on")
        return self

    def training(self, name: str) -> ModelTraining:
        """The training of one model."""
        chosen: ModelTraining = getattr(self, name)
        return chosen

    def scenes(self, name: str) -> PoolConfig:
        """The part of the pool that one model has."""
        own = self.training(name).scenes
        return self.pool if own is None else self.pool.model_copy(update={"scenes": min(own, self.pool.scenes)})


def _over(before: Mapping[str, Any], now: Any) -> Any:
    """`now` with what it leaves out, at any depth, from `before`."""
    if not isinstance(now, Mapping):
        return now
    inner = {name: _over(old, now[name]) for name, old in before.items() if isinstance(old, Mapping) and name in now}
    return {**before, **now, **inner}
