"""An exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class Ema:
    """`model` is the averaged copy; buffers are copied as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are now: a = decay * a + (1 - decay) * w."""
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - self.decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
