"""The routers' noise of an image as a function of (seed, epoch, its name): any process in any order draws the same."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import generator
from sak.student.router import noise_shape
from sak.student.student import Student
from sak.variants.amalgam import Amalgam


class GateNoise:
    """Standard normal draws for every level and task of routers; `shapes` by level, (tasks, experts) and any grid."""

    def __init__(self, tasks: Sequence[str], shapes: Mapping[int, tuple[int, ...]], seed: int) -> None:
        self.tasks, self.shapes, self.seed = tuple(tasks), dict(shapes), seed

    def __call__(self, names: Sequence[str], epoch: int) -> dict[int, dict[str, Tensor]]:
        """Level -> task -> (B, E), or (B, E, H, W) with noise per pixel; float32 on the CPU."""
        sources = [generator(self.seed, epoch, f"gates\0{name}") for name in names]
        noise = {}
        for level, shape in self.shapes.items():
            drawn = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources], axis=1)
            noise[level] = dict(zip(self.tasks, torch.from_numpy(drawn), strict=True))
        return noise


def gate_noise(network: nn.Module, seed: int) -> GateNoise | None:
    """Of a student's or an amalgamation's routers; None where the network has none."""
    if isinstance(network, Amalgam):
        tasks = tuple(network.config.tasks)
        return GateNoise(tasks, dict.fromkeys(network.levels, (len(tasks), len(network.experts))), seed)
    if not isinstance(network, Student) or network.config.fusion != "mor" or not network.config.tasks:
        return None
    config = network.config
    experts, count = len(config.experts), len(config.tasks)
    shapes = {
        level: noise_shape(config.gate_noise, batch=count, experts=experts, grid=config.grid_at(level))
        for level in config.tapped
    }
    return GateNoise(tuple(config.tasks), shapes, seed)
