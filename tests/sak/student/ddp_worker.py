"""One of two processes that train a student together; writes its gradients. Run by test_distributed.py."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from sak.student.build import build_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize

CONFIG = StudentConfig(
    image_size=(32, 48),
    stem=StemSize(width=24, depth=2, heads=3),
    levels=(1, 2),
    weights="random:1",
    teachers={"dinov2": 32, "sam": None},
)


def loss_of(output):
    """A mean over images, so that the mean over processes is that over all images."""
    maps = [map_ for maps in output.teachers.values() for map_ in maps]
    return sum(value.square().mean() for value in (*maps, *output.tasks.values()))


def train(config: StudentConfig, images: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    student = build_student(config).train()
    model = DistributedDataParallel(student)
    for _ in range(2):  # the second forward fails where the first left a parameter without gradient
        student.zero_grad()
        loss_of(model(images[rank : rank + 1])).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    torch.save(train(CONFIG, images, rank), folder / f"stage1-{rank}.pt")
    train(replace(CONFIG, tasks={"semseg": 4}, gradient_checkpointing=True), images, rank)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
