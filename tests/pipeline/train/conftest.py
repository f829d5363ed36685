"""A toy model and toy batches for the loop."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.train.config import TrainingConfig
from pipeline.train.devices import make_accelerator
from pipeline.train.loop import Fit
from pipeline.train.protocols import Hooks, StepResult
from pipeline.train.run import RunDirectory


@dataclass
class ToyBatch:
    x: torch.Tensor
    y: torch.Tensor
    keys: list[str]
    released: list = field(default_factory=list)

    def split(self, parts):
        size = len(self.keys) // parts
        rows = [slice(n * size, (n + 1) * size) for n in range(parts)]
        return [ToyBatch(self.x[r], self.y[r], self.keys[r], self.released) for r in rows]

    def release(self):
        self.released.append(self.keys)


@dataclass
class ToySource:
    """Batches of 8 that follow from their step; `poison` is the step whose batch holds a NaN."""

    poison: int | None = None
    on_batch: object = None
    released: list = field(default_factory=list)
    steps_per_epoch: int = 4

    def start_at(self, step):
        while True:
            if self.on_batch is not None:
                self.on_batch(step)
            draws = torch.Generator().manual_seed(step)
            x = torch.randn(8, 4, generator=draws)
            if step == self.poison:
                x[3, 1] = float("nan")
            yield ToyBatch(x, x.sum(1, keepdim=True), [f"k{step}-{n}" for n in range(8)], self.released)
            step += 1


class ToyModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.GELU(), nn.Linear(6, 1))

    def forward(self, x):
        return self.net(x)


def step(model, batch):
    loss = (model(batch.x) - batch.y).square().mean()
    return StepResult(loss, {"part": loss.detach() / 2})


def save(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")


def load(model, folder):
    model.load_state_dict(load_file(folder / "model.safetensors"))


@pytest.fixture
def toy(tmp_path):
    """`toy.fit(name, ...)` makes a `Fit` in a run directory of that name; `toy.settings` the plain configuration."""

    def fit(name="run", *, source=None, model=None, resume=False, hooks=None, **settings):
        config = TrainingConfig(**{"steps": 20, "batch_size": 8, "log_every": 1, "checkpoint_every": 0,
                                   "schedule": {"warmup_steps": 2}, **settings})  # fmt: skip
        plain = config.model_dump(mode="json")
        root = tmp_path / name
        run = RunDirectory.resume(root, plain) if resume else RunDirectory.create(root, plain)
        made = Fit(
            model or ToyModel(),
            source or ToySource(),
            step,
            config=config,
            run=run,
            hooks=Hooks(save_model=save, load_model=load, **(hooks or {})),
            accelerator=make_accelerator(config, device="cpu"),
        )
        if resume:
            made.resume()
        return made

    def losses(name="run"):
        return {line["step"]: line["loss"] for line in RunDirectory(tmp_path / name).metrics() if "loss" in line}

    return SimpleNamespace(fit=fit, losses=losses, source=ToySource, model=ToyModel, root=tmp_path, save=save)
