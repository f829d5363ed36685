"""The routers' noise of an image as a function of (seed, epoch, its name): any process in any order draws the same."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import generator
from sak.student import StudentConfig
from sak.student.router import noise_shape


class GateNoise:
    """Standard normal draws for every level and task of a student's routers."""

    def __init__(self, config: StudentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        experts, tasks = len(config.experts), len(config.tasks)
        shapes = {
            level: noise_shape(config.gate_noise, batch=tasks, experts=experts, grid=config.grid_at(level))
            for level in config.tapped
        }
        self.shapes: dict[int, tuple[int, ...]] = shapes

    def __call__(self, names: Sequence[str], epoch: int) -> dict[int, dict[str, Tensor]]:
        """Level -> task -> (B, E), or (B, E, H, W) with noise per pixel; float32 on the CPU."""
        sources = [generator(self.seed, epoch, f"gates\0{name}") for name in names]
        noise = {}
        for level, shape in self.shapes.items():
            drawn = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources], axis=1)
            noise[level] = dict(zip(self.config.tasks, torch.from_numpy(drawn), strict=True))
        return noise


def gate_noise(config: StudentConfig, seed: int) -> GateNoise | None:
    """None where the student has no routers with tasks."""
    return GateNoise(config, seed) if config.fusion == "mor" and config.tasks else None
