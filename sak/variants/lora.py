"""LoRA on the stem: frozen linear layers with a trainable low-rank update, which can be merged away."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.student.config import Lora

LORA_KEYS = ("lora_down", "lora_up")


class LoraLinear(nn.Linear):
    """W x + b + alpha / rank * up (down x); keeps the keys `weight` and `bias` of the layer it replaces.

    `up` starts at zero, so a fresh layer computes what the replaced one did.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_scale = alpha / rank
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        update = F.linear(F.linear(tokens, self.lora_down), self.lora_up)
        return F.linear(tokens, self.weight, self.bias) + self.lora_scale * update

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta", dtype=self.weight.dtype)
        with torch.no_grad():
            weight = self.weight + self.lora_scale * self.lora_up @ self.lora_down
        plain.weight = nn.Parameter(weight)
        plain.bias = nn.Parameter(self.bias.detach())
        return plain


def add_lora(stem: nn.Module, lora: Lora) -> None:
    """Replace the target layers of every block, in place."""
    for name, module in list(stem.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora.targets and ".blocks." in f".{name}":
            _replace(stem, name, LoraLinear(module, lora.rank, lora.alpha))


def merge_lora(stem: nn.Module) -> None:
    """Put plain layers with the updated weights in place of all LoRA layers, in place."""
    for name, module in list(stem.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(stem, name, module.merged())


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
