"""The paper's simple head: a linear layer per level, then two convolutions at a quarter of the image's size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.features import FeatureMaps, bilinear_resize, map_to_tokens, tokens_to_map


class SimpleHead(nn.Module):
    """Linear(C, C/4) per level, concatenated at four times the grid, Conv 3x3 - BatchNorm - GELU - Conv 1x1."""

    def __init__(self, width: int, levels: int, channels: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width // 4) for _ in range(levels))
        self.fuse = nn.Sequential(nn.Conv2d(levels * (width // 4), width, 3, padding=1), nn.BatchNorm2d(width))
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, features: FeatureMaps) -> Tensor:
        """Levels (B, C, H, W) -> (B, channels, 4H, 4W), a quarter of the image's size at patch 16."""
        height, width = features.grid
        reduced = [
            bilinear_resize(self._reduce(linear, map_), (4 * height, 4 * width))
            for linear, map_ in zip(self.linears, features, strict=True)
        ]
        return self.out(F.gelu(self.fuse(torch.cat(reduced, dim=1))))

    def _reduce(self, linear: nn.Module, map_: Tensor) -> Tensor:
        return tokens_to_map(linear(map_to_tokens(map_)), prefix=0, grid=(map_.shape[-2], map_.shape[-1]))
