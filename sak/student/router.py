"""Mixture-of-Representations router (MoR, section 3.3): how much of each expert a task takes at a level."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE_FLOOR = 0.01
"""Added to softplus(e) (published code; equation 4 has none)."""


class Router(nn.Module):
    """Gates of one level and task from the patch tokens of the un-normalised stem.

    The paper gives the raw noise e an MLP of its own; the published code, and we, take clean logits and raw noise from
    one MLP whose last layer has twice the experts.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.LayerNorm(width // 2, eps=1e-5),
            nn.GELU(),
            nn.Linear(width // 2, 2 * experts),
        )

    def logits(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, n, C) -> (B, 2E): E clean logits h, then E raw noise e, each the mean over the tokens.

        At least float32 from the mean on, also under autocast.
        """
        raw = self.net(tokens)
        return raw.to(torch.promote_types(raw.dtype, torch.float32)).mean(dim=1)

    def forward(self, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        """Gates that sum to one over the experts (equation 4); without noise softmax(h), as in evaluation.

        Args:
            tokens: (B, n, C) patch tokens.
            noise: standard normal, (B, E) for one draw per image or (B, E, H, W) for one per pixel.

        Returns:
            (B, E), or (B, E, H, W) where the noise is per pixel.
        """
        clean, raw_noise = self.logits(tokens).chunk(2, dim=-1)
        if noise is None:
            return clean.softmax(dim=1)
        spread = F.softplus(raw_noise) + NOISE_FLOOR
        ones = (1,) * (noise.ndim - 2)
        return (clean.view(*clean.shape, *ones) + noise * spread.view(*spread.shape, *ones)).softmax(dim=1)


def noise_shape(kind: Literal["image", "pixel"], *, batch: int, experts: int, grid: tuple[int, int]) -> tuple[int, ...]:
    """(B, E) for `image`, (B, E, H, W) for `pixel`."""
    return (batch, experts, *grid) if kind == "pixel" else (batch, experts)


def draw_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise on the device of `like`, from `generator` where one is given."""
    return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)


def mix(gates: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """The experts' weighted sum, in their dtype: gates (B, E) or (B, E, H, W), E maps (B, C, H, W) -> (B, C, H, W)."""
    weights = (gates[..., None, None] if gates.ndim == 2 else gates).to(experts[0].dtype)
    mixed = weights[:, 0:1] * experts[0]
    for index, expert in enumerate(experts[1:], start=1):
        mixed = mixed + weights[:, index : index + 1] * expert
    return mixed
