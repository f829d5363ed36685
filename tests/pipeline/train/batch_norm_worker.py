"""One of two processes that train a BatchNorm on their halves of a batch: `batch_norm_worker.py FOLDER`."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.train.devices import synchronise


def main(folder: Path) -> None:
    """Three steps, and one forward in eval mode; the first process writes what came out."""
    accelerator = Accelerator(cpu=True)
    given = load_file(folder / "given.safetensors")
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 2, 1)).double()
    layers.load_state_dict({key.removeprefix("sd."): value for key, value in given.items() if key.startswith("sd.")})
    plain = synchronise(layers, accelerator)
    model = nn.parallel.DistributedDataParallel(plain)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    rank = int(os.environ["RANK"])
    for step in range(3):
        half = given[f"images{step}"].chunk(2)[rank]
        loss = (model(half) * (1 + rank)).square().mean()  # losses that differ between the processes
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    plain.eval()
    seen = plain(given["images0"])
    if rank == 0:
        save_file({**{f"sd.{key}": value for key, value in plain.state_dict().items()}, "seen": seen.detach()},
                  folder / "two.safetensors")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
