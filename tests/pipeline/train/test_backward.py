"""Gradients combined task by task in the loop, and a weighting that trains along and resumes exactly."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.train.backward import GradientSurgery, PlainBackward
from pipeline.train.config import TrainingConfig
from pipeline.train.devices import make_accelerator
from pipeline.train.loop import Fit
from pipeline.train.protocols import Hooks, StepResult
from pipeline.train.run import RunDirectory
from sak.variants.weighting import combination, make_weighting

NAMES = ("a", "b", "c")


class Tasks(nn.Module):
    """A trunk that three tasks share, and a head for each."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 1) for name in NAMES})
        self.aside = nn.Linear(5, 2)

    def forward(self, x):
        hidden = self.trunk(x).tanh()
        return {name: head(hidden) for name, head in self.heads.items()}, self.aside(hidden)


def weighting_of(kind="fixed"):
    return make_weighting(kind, dict.fromkeys(NAMES, 1.0), steps=2, seed=1)


def plain_sum(gram, generator):
    return torch.ones(len(gram), dtype=torch.float64)


def surgery(method, model, accelerator, weighting=None):
    combine = plain_sum if method == "sum" else combination(method)
    return GradientSurgery(accelerator, model, weighting or weighting_of(), combine, seed=5)


def batch(step):
    """Images, and targets of three sizes that one hidden layer can learn."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return x, x[:, :3] * torch.tensor([0.1, 1.0, 3.0])


def part_of(step, rank, ranks):
    x, y = batch(step)
    rows = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    return SimpleNamespace(x=x[rows], y=y[rows])


def task_step(model, batch, weighting=None):
    predictions, aside = model(batch.x)
    losses = {
        name: (map_ - batch.y[:, i : i + 1]).square().mean() for i, (name, map_) in enumerate(predictions.items())
    }
    terms = losses if weighting is None else weighting(losses)
    rest = 0.1 * aside.square().mean()
    return StepResult(sum(terms.values()) + rest, {}, terms, rest)


def combined(method, model):
    accelerator = make_accelerator(TrainingConfig(steps=1), device="cpu")
    surgery(method, model, accelerator)(task_step, model, [part_of(0, 0, 1)], 0)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def of_each(model):
    """Each task's own gradient by name, and the rest's."""
    result = task_step(model, part_of(0, 0, 1))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = {task: dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                            strict=True)) for task, loss in result.objectives.items()}  # fmt: skip
    rest = torch.autograd.grad(result.rest, parameters, allow_unused=True)
    return found, dict(zip(names, rest, strict=True))


def test_the_plain_sum_apart_is_the_gradient_of_the_sum():
    torch.manual_seed(0)
    model = Tasks()
    found = combined("sum", model)
    model.zero_grad()
    task_step(model, part_of(0, 0, 1)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
def test_shared_parameters_alone_are_combined(method):
    """The trunk's gradient is the method's combination of the tasks'; heads and the rest keep their own."""
    torch.manual_seed(3)
    model = Tasks()
    found = combined(method, model)
    each, rest = of_each(model)
    trunk = ("trunk.weight", "trunk.bias")
    rows = torch.stack([torch.cat([each[task][name].flatten() for name in trunk]) for task in NAMES]).double()
    weights = combination(method)(rows @ rows.T, torch.Generator().manual_seed(5 << 32))
    expected = weights @ rows + torch.cat([rest[name].flatten() for name in trunk]).double()
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in trunk]).double(), expected)
    assert not torch.allclose(weights, torch.ones(3, dtype=torch.float64))
    for task in NAMES:
        torch.testing.assert_close(found[f"heads.{task}.weight"], each[task][f"heads.{task}.weight"])
    torch.testing.assert_close(found["aside.weight"], rest["aside.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
def test_two_processes_combine_what_one_does(method, tmp_path):
    for processes in (1, 2):
        run_workers(processes, tmp_path, method)
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def run_workers(processes, out, method):
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    code = str(Path(__file__).with_name("backward_worker.py"))
    subprocess.run([*command, code, str(out), method], check=True, env=environment, cwd=root, timeout=200)


class Source:
    steps_per_epoch = 2

    def start_at(self, step):
        while True:
            x, y = batch(step)
            yield Batch(x, y)
            step += 1


class Batch(SimpleNamespace):
    def __init__(self, x, y):
        super().__init__(x=x, y=y, keys=["k"] * len(x))

    def split(self, parts):
        size = len(self.x) // parts
        return [Batch(self.x[n * size : (n + 1) * size], self.y[n * size : (n + 1) * size]) for n in range(parts)]

    def release(self):
        pass


def save(model, place):
    save_file(model.state_dict(), place / "model.safetensors")


def load(model, place):
    model.load_state_dict(load_file(place / "model.safetensors"))


def train(folder, kind, method, *, steps, resume=False, **settings):
    """A run of 10 steps that is left at `steps`."""
    config = TrainingConfig(steps=10, batch_size=8, log_every=1, checkpoint_every=steps if steps < 10 else 0,
                            optimiser={"rate": 0.05}, schedule={"kind": "constant"}, **settings)  # fmt: skip
    plain = {"training": 1}
    run = RunDirectory.resume(folder, plain) if resume else RunDirectory.create(folder, plain)
    weighting = weighting_of(kind)
    torch.manual_seed(0)
    model, accelerator = Tasks(), make_accelerator(config, device="cpu")
    backward = (
        PlainBackward(accelerator, weighting) if method == "sum" else surgery(method, model, accelerator, weighting)
    )
    hooks = Hooks(save_model=save, load_model=load)
    fit = Fit(model, Source(), lambda model, part: task_step(model, part, weighting), config=config, run=run,
              hooks=hooks, accelerator=accelerator, backward=backward)  # fmt: skip
    if resume:
        fit.resume()
    elif steps < 10:
        fit.total = steps
    fit()
    return fit, {line["step"]: line["loss"] for line in run.metrics() if "loss" in line}


@pytest.mark.parametrize(("kind", "method"), [("uncertainty", "sum"), ("dwa", "pcgrad"), ("rlw", "cagrad")])
def test_a_run_that_was_stopped_goes_on_exactly(kind, method, tmp_path):
    whole, losses = train(tmp_path / "whole", kind, method, steps=10)
    train(tmp_path / "parts", kind, method, steps=5)
    parts, again = train(tmp_path / "parts", kind, method, steps=10, resume=True)
    assert again == losses
    state = whole.backward.companion.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in parts.backward.companion.state_dict().items())


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_uncertainties_train_beside_the_model_without_weight_decay(method, tmp_path):
    fit, _ = train(tmp_path / "run", "uncertainty", method, steps=10)
    moved = [value.item() for value in fit.backward.companion.log_variances.values()]
    assert moved[0] < -0.05
    assert moved[2] > 0.05
    assert [group["weight_decay"] for group in fit.optimiser.param_groups] == [0.01, 0.0]


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    _, whole = train(tmp_path / "whole", "fixed", "cagrad", steps=10)
    _, parts = train(tmp_path / "parts", "fixed", "cagrad", steps=10, accumulate=2)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_bf16_combines_gradients_of_the_models_own_precision(tmp_path):
    _, expected = train(tmp_path / "fp32", "fixed", "pcgrad", steps=10)
    fit, losses = train(tmp_path / "bf16", "fixed", "pcgrad", steps=10, precision="bf16")
    assert {parameter.dtype for parameter in fit.plain.parameters()} == {torch.float32}
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses != expected
