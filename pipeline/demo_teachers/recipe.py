"""A recipe of the demo's own models: the scenes they see, and how each is trained."""

from pydantic import Field

from pipeline.data.demo.pool import PoolSpec
from pipeline.training.config import Frozen, OptimiserConfig, ScheduleConfig, TrainingConfig


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
    """Each model's training; the steps are what one thread does in 4 to 25 minutes."""

    pool: PoolConfig = PoolConfig()
    dino: ModelTraining = _training(2000, 32)
    clip: ModelTraining = _training(1000, 64, scenes=3072)
    sam: ModelTraining = _training(600, 16, scenes=3072)
    stem: ModelTraining = _training(1000, 64)

    def training(self, name: str) -> ModelTraining:
        """The training of one model."""
        chosen: ModelTraining = getattr(self, name)
        return chosen

    def scenes(self, name: str) -> PoolConfig:
        """The part of the pool that one model has."""
        own = self.training(name).scenes
        return self.pool if own is None else self.pool.model_copy(update={"scenes": min(own, self.pool.scenes)})
