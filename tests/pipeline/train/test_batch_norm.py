"""BatchNorm over processes is BatchNorm over their whole batch."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.train.devices import SummedBatchNorm, synchronise

WORKER = Path(__file__).with_name("batch_norm_worker.py")


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 2, 1)).double()


def test_one_process_keeps_torchs_own():
    assert type(synchronise(network(), Accelerator(cpu=True))[1]) is nn.BatchNorm2d


def test_alone_in_its_group_it_is_batch_norm(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        ours, theirs = SummedBatchNorm(4).double(), nn.BatchNorm2d(4).double()
        images = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 7 + 100
        for training in (True, True, False):
            seen = [images.clone().requires_grad_() for _ in range(2)]
            made = [layer.train(training)(x) for layer, x in zip((ours, theirs), seen, strict=True)]
            torch.testing.assert_close(*made)
            for each in made:
                (each * torch.linspace(0, 1, each.numel(), dtype=each.dtype).view_as(each)).sum().backward()
            torch.testing.assert_close(*(x.grad for x in seen), rtol=1e-9, atol=1e-12)
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, other)
        low = SummedBatchNorm(4)(images.bfloat16())
        assert low.dtype == torch.bfloat16
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(run_two, tmp_path):
    model = network()
    images = {f"images{step}": torch.randn(4, 3, 6, 6, dtype=torch.float64) * 3 + 5 for step in range(3)}
    given = {f"sd.{key}": value.clone() for key, value in model.state_dict().items()}
    save_file({**given, **images}, tmp_path / "given.safetensors")
    run_two(WORKER, tmp_path)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        made = model(images[f"images{step}"])
        weights = torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
        optimiser.zero_grad()
        (made * weights).square().mean().backward()
        optimiser.step()
    two = load_file(tmp_path / "two.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(two[f"sd.{key}"], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two["seen"], model.eval()(images["images0"]), rtol=1e-9, atol=1e-12)
