"""An exponential moving average of a model's weights."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

PREFIX = "ema."


class Ema:
    """`model` is the averaged copy; buffers are copied as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are now."""
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - self.decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self.model.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        self.model.load_state_dict(own)
