"""Tiny students through the real code path."""

import pytest
import torch

from sak.student.config import StudentConfig
from sak.student.sizes import StemSize


@pytest.fixture
def tiny() -> StudentConfig:
    """Three teachers of other widths, two tasks, a grid of 3 x 4."""
    return StudentConfig(
        image_size=(48, 64),
        stem=StemSize(width=24, depth=4, heads=3),
        weights="random:1",
        teachers={"dinov2": 32, "clip": None, "sam": 16},
        tasks={"semseg": 5, "depth": 1},
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
