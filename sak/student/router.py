"""Mixture-of-Representations routers (MoR, section 3.3): their noise is drawn here, their gates mix the experts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.errors import UsageError
from sak.features import at_least_float32

Gates = Mapping[int, Mapping[str, Tensor]]
"""Level -> task -> one value per expert: (B, E), with noise per pixel (B, E, H, W)."""

GateNoise = Literal["image", "pixel"]

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
        return at_least_float32(raw).mean(dim=1)

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


def noise_shape(kind: GateNoise, *, batch: int, experts: int, grid: tuple[int, int]) -> tuple[int, ...]:
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


class StemAlone(nn.ModuleDict):
    """What a task's decoder reads at a level: here the stem's map. The base of the other fusions; it has no weights."""

    def gates(
        self,
        tapped: Mapping[int, Tensor],
        tasks: Sequence[str],
        noise: Gates | None,
        generator: torch.Generator | None,
    ) -> dict[int, dict[str, Tensor]]:
        """Level -> task -> gates, from the stem's tokens (B, P+n, C) by level; none without routers."""
        del tapped, tasks, noise, generator
        return {}

    def fuse(self, gates: Mapping[str, Tensor], task: str, tas: Tensor, paths: Sequence[Tensor]) -> Tensor:
        """One level's map for the task: its gates, the stem's map and the adapter paths', all (B, C, H, W)."""
        del gates, task, paths
        return tas


class SumOfPaths(StemAlone):
    """The teachers' paths added together; the stem is in every path and is not added again (Table 3, row 2)."""

    def fuse(self, gates: Mapping[str, Tensor], task: str, tas: Tensor, paths: Sequence[Tensor]) -> Tensor:
        """See StemAlone."""
        del gates, task, tas
        return sum(paths[1:], start=paths[0])


class Routers(StemAlone):
    """`<level>.<task>` -> Router over TAS and the teachers' paths; levels are given as level -> width."""

    def __init__(
        self,
        levels: Mapping[int, int],
        tasks: Iterable[str],
        experts: int,
        *,
        prefix: int,
        kind: GateNoise,
        grids: Mapping[int, tuple[int, int]],
    ) -> None:
        super().__init__(
            {
                str(level): nn.ModuleDict({task: Router(width, experts) for task in tasks})
                for level, width in levels.items()
            }
        )
        self.experts, self.prefix, self.kind, self.grids = experts, prefix, kind, grids

    def gates(
        self,
        tapped: Mapping[int, Tensor],
        tasks: Sequence[str],
        noise: Gates | None,
        generator: torch.Generator | None,
    ) -> dict[int, dict[str, Tensor]]:
        """See StemAlone; in training with the noise given, or drawn level by level and task by task."""
        gates: dict[int, dict[str, Tensor]] = {}
        for level, tokens in tapped.items() if tasks else ():
            patches = tokens[:, self.prefix :].contiguous()
            gates[level] = {
                task: self[str(level)][task](patches, self._noise(patches, level, task, noise, generator))  # type: ignore[index]
                for task in tasks
            }
        return gates

    def fuse(self, gates: Mapping[str, Tensor], task: str, tas: Tensor, paths: Sequence[Tensor]) -> Tensor:
        """See StemAlone: the experts mixed by the task's gates."""
        return mix(gates[task], [tas, *paths])

    def _noise(
        self, tokens: Tensor, level: int, task: str, given: Gates | None, generator: torch.Generator | None
    ) -> Tensor | None:
        if not self.training:
            return None
        shape = noise_shape(self.kind, batch=len(tokens), experts=self.experts, grid=self.grids[level])
        if given is None:
            return draw_noise(shape, tokens, generator)
        if level not in given or task not in given[level]:
            raise UsageError(f"no noise for level {level}, {task}; give it for every level and task, or leave it out")
        noise = given[level][task]
        if tuple(noise.shape) != shape:
            raise UsageError(
                f"noise of level {level}, {task} is {tuple(noise.shape)}; gate_noise {self.kind!r} needs {shape}"
            )
        return noise
