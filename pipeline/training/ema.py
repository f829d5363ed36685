"""An exponential moving average of a model's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """`model` is the averaged copy; buffers are copied as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are now: a = decay * a + (1 - decay) * w."""
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
        self._average(mine, theirs, 0)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
