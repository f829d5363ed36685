"""Teacher-Specific Adapter Paths (TSAP, equations 2 and 3): one per teacher beside the stem, evaluated together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Adapter(nn.Module):
    """Equation 3: u + scale * W_up GELU(W_down u); weights truncated normal std 0.02, biases 0, scale 1."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return tokens + self.scale * self.up(F.gelu(self.down(tokens)))


def run_block(owner: Any, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function's value; where `owner` trains with `gradient_checkpointing`, recomputed in the backward pass."""
    if owner.gradient_checkpointing and owner.training:
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


class StackedPaths(nn.ModuleDict):
    """One path per teacher, `<teacher>` -> its adapters, run block by block for all teachers together.

    Each teacher keeps adapters of its own, so state dict, optimiser and gradients stay per teacher; `step` stacks their
    weights and evaluates all teachers in two batched products per block. `stacked = False` evaluates one adapter after
    another, to the same numbers.
    """

    def __init__(self, paths: Mapping[str, nn.Module], *, gradient_checkpointing: bool) -> None:
        super().__init__(paths)
        self.stacked = True
        self.gradient_checkpointing = gradient_checkpointing

    def adapters(self, block: int) -> list[Adapter]:
        """The teachers' adapters of a block, in order; here a path is a ModuleList of them."""
        return [path[block] for path in self.values()]  # type: ignore[index]

    def run(self, block: int, paths: Tensor | None, tokens: Tensor) -> Tensor:
        """As `step`, recomputed in the backward pass where gradients are checkpointed."""
        return run_block(self, self.step, block, paths, tokens)

    def step(self, block: int, paths: Tensor | None, tokens: Tensor) -> Tensor:
        """R_block of every teacher (N, B, T, C) from R_{block-1} (None before the first) and Z_block (B, T, C)."""
        entering = tokens.expand(len(self), *tokens.shape) if paths is None else paths + tokens
        adapters = self.adapters(block)
        if not self.stacked:
            return torch.stack([adapter(entering[i]) for i, adapter in enumerate(adapters)])
        return adapt_all(stack_weights(adapters), entering)


class AdapterPaths(StackedPaths):
    """L+1 adapters per teacher beside a ViT: R_l = a_l(R_{l-1} + Z_l), R_0 = a_0(Z_0)."""

    def __init__(
        self, teachers: Sequence[str], *, width: int, depth: int, hidden: int, gradient_checkpointing: bool = False
    ) -> None:
        paths = {teacher: nn.ModuleList(Adapter(width, hidden) for _ in range(depth + 1)) for teacher in teachers}
        super().__init__(paths, gradient_checkpointing=gradient_checkpointing)

    def forward(self, stem_tokens: Sequence[Tensor], levels: Sequence[int]) -> tuple[Tensor, ...]:
        """R_l of every teacher at the given levels: L+1 x (B, 1+n, C) -> len(levels) x (N, B, 1+n, C)."""
        paths: Tensor | None = None
        tapped: dict[int, Tensor] = {}
        for block, tokens in enumerate(stem_tokens):
            paths = self.run(block, paths, tokens)
            if block in levels:
                tapped[block] = paths
        return tuple(tapped[level] for level in levels)


class StackedWeights(NamedTuple):
    """One block's adapters of all N teachers: scale (N, 1, 1), weights (N, out, in), biases (N, 1, out)."""

    scale: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


def stack_weights(adapters: Sequence[Adapter]) -> StackedWeights:
    """Copy the adapters' weights together; gradients flow back to each adapter's own."""
    return StackedWeights(
        scale=torch.stack([adapter.scale for adapter in adapters]).unsqueeze(-1),
        down=torch.stack([adapter.down.weight for adapter in adapters]),
        down_bias=torch.stack([adapter.down.bias for adapter in adapters]).unsqueeze(1),
        up=torch.stack([adapter.up.weight for adapter in adapters]),
        up_bias=torch.stack([adapter.up.bias for adapter in adapters]).unsqueeze(1),
    )


def adapt_all(weights: StackedWeights, entering: Tensor) -> Tensor:
    """Equation 3 for every teacher at once: (N, B, T, C) -> (N, B, T, C).

    The scale goes into W_up, where it costs nothing, and the sum stays outside the products: under autocast the
    residual keeps float32.
    """
    tokens = entering.flatten(1, 2)
    hidden = F.gelu(torch.baddbmm(weights.down_bias, tokens, weights.down.mT))
    change = torch.baddbmm(weights.scale * weights.up_bias, hidden, (weights.scale * weights.up).mT)
    return entering + change.view_as(entering)
