"""A term that keeps what is local: every level's tokens repaint their patch, its edges, what lies around it, and where.

Objectives about whole images or masks let colour, shading and place of a patch fade on the way up. Here linear heads at
each of the four levels that students are taught from, thrown away later, paint a patch and half a patch on each side
of it, and say where in the view it lies. No label is used.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 4
"""Red, green, blue, and how steep the grey is (Sobel)."""

STEEP = 3.0
"""How much more steepness counts than colour: edges are few."""

PLACED = 0.1
"""Weight of the places."""


class Repaint(nn.Module):
    """Tokens of `width` channels, four levels -> smooth L1 to places and to surroundings at `side` pixels a patch."""

    def __init__(self, width: int, side: int, levels: int = 4) -> None:
        super().__init__()
        self.side = side
        seen = side + 2 * (side // 2)
        self.heads = nn.ModuleList(nn.Linear(width, CHANNELS * seen**2) for _ in range(levels))
        self.places = nn.ModuleList(nn.Linear(width, 2) for _ in range(levels))

    def forward(self, levels: Sequence[Tensor], images: Tensor, grid: int) -> Tensor:
        """levels: (B, grid^2, C) each; images: (B, 3, H, W), normalised, of a whole number of patches."""
        wanted, places = self.surroundings(images, grid), _places(grid, images.device)
        losses = []
        for tokens, paint, locate in zip(levels, self.heads, self.places, strict=True):
            lost = F.smooth_l1_loss(locate(tokens), places.expand(len(tokens), -1, -1))
            losses.append(F.smooth_l1_loss(paint(tokens), wanted) + PLACED * lost)
        return torch.stack(losses).mean()

    def surroundings(self, images: Tensor, grid: int) -> Tensor:
        """What each patch and half a patch beyond it show, (B, grid^2, CHANNELS * seen^2); edges are continued."""
        shown = F.interpolate(images, size=(self.side * grid,) * 2, mode="area")
        margin = self.side // 2
        maps = F.pad(torch.cat((shown, STEEP * steepness(shown)), dim=1), (margin,) * 4, mode="replicate")
        return F.unfold(maps, self.side + 2 * margin, stride=self.side).transpose(1, 2)


def _places(grid: int, device: torch.device) -> Tensor:
    """Centres of a view's patches, row and column from -1 to 1, (grid^2, 2)."""
    steps = (torch.arange(grid, device=device) + 0.5) * (2 / grid) - 1
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)


def steepness(images: Tensor) -> Tensor:
    """Length of the grey's gradient by Sobel's kernels, (B, 3, H, W) -> (B, 1, H, W)."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 4
    grey = F.pad(images.mean(1, keepdim=True), (1,) * 4, mode="replicate")
    slopes = F.conv2d(grey, torch.stack((across, across.T))[:, None])
    return (slopes.pow(2).sum(1, keepdim=True) + 1e-6).sqrt()
