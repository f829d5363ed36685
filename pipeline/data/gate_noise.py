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
        self.shape = noise_shape(config.gate_noise, batch=1, experts=len(config.experts), grid=config.grid)[1:]

    def __call__(self, names: Sequence[str], epoch: int) -> dict[int, dict[str, Tensor]]:
        """Level -> task -> (B, E), or (B, E, H, W) with noise per pixel; float32 on the CPU."""
        levels, tasks = self.config.tapped, tuple(self.config.tasks)
        shape = (len(levels), len(tasks), *self.shape)
        drawn = [
            generator(self.seed, epoch, f"gates\0{name}").standard_normal(shape, dtype=np.float32) for name in names
        ]
        noise = torch.from_numpy(np.stack(drawn))
        return {
            level: {task: noise[:, place, column] for column, task in enumerate(tasks)}
            for place, level in enumerate(levels)
        }


def gate_noise(config: StudentConfig, seed: int) -> GateNoise | None:
    """None where the student has no routers with tasks."""
    return GateNoise(config, seed) if config.fusion == "mor" and config.tasks else None
