"""MLoRE's decoder: a convolution that all tasks share, and low-rank experts beside it that each task picks from.

Yang et al., "Multi-Task Dense Prediction via Mixture of Low-Rank Experts", CVPR 2024. From its equations; no line
of its published code, whose settings give the sizes and the loss that balances experts. Named departure: the router
reads the mean over positions alone, and has no second path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.features import FeatureMaps, at_least_float32, bilinear_resize
from sak.student.heads import Decoded, Decoder, DecoderShape, quarter_size

CHOSEN = 9
MODULES = 2  # stacked at each level


@dataclass(frozen=True)
class MLoRESizes:
    """Ranks of the shared experts and of a task's own, and the decoder's width as a share of the stem's."""

    ranks: tuple[int, ...]
    own_rank: int
    width: tuple[int, int]


SIZES = MLoRESizes(tuple(range(16, 129, 8)), own_rank=72, width=(7, 16))
"""The published runs on PASCAL-Context: 15 experts; 448 channels for an L stem, where those have 452."""

WIDE = MLoRESizes(tuple(range(16, 241, 16)), own_rank=16, width=(3, 4))
"""The published run on NYUD-v2: 15 experts of higher ranks, 768 channels for an L stem."""


class LowRankExperts(nn.Module):
    """Experts of given ranks, evaluated together: expert n is up_n (1x1, r_n -> C) after down_n (3x3, C -> r_n).

    As they are linear, gates may act on the hidden channels: one convolution down, one up, for all experts.
    """

    def __init__(self, width: int, ranks: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, sum(ranks), 3, padding=1, bias=False)
        self.up = nn.Conv2d(sum(ranks), width, 1, bias=False)
        self.ranks = tuple(ranks)

    def forward(self, map_: Tensor, gates: Tensor | None = None) -> Tensor:
        """The experts' sum weighted by gates (B, E), or their plain sum: (B, C, H, W) -> (B, C, H, W)."""
        hidden = self.down(map_)
        if gates is not None:
            of_channels = torch.cat([gates[:, i : i + 1].expand(-1, rank) for i, rank in enumerate(self.ranks)], dim=1)
            hidden = hidden * of_channels[..., None, None].to(hidden.dtype)
        return self.up(hidden)

    def kernel(self, gates: Tensor | None = None) -> Tensor:
        """The one 3x3 convolution (C, C, 3, 3) that computes the same for gates (E,): re-parameterisation."""
        weights = self.up.weight.new_ones(len(self.ranks)) if gates is None else gates
        counts = torch.tensor(self.ranks, device=weights.device)
        hidden = weights.repeat_interleave(counts).view(-1, 1, 1, 1) * self.down.weight
        return torch.einsum("or,rikl->oikl", self.up.weight[..., 0, 0], hidden)


class ExpertRouter(nn.Module):
    """One task's noisy top-k gates over the shared experts: softmax over the chosen ones, zero for the others.

    In training `share` keeps the last batch's mean softmax over all experts (E,), which the balancing loss reads.
    """

    def __init__(self, width: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, 2 * experts))
        self.chosen = min(chosen, experts)
        self.share: Tensor | None = None

    def forward(self, map_: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E), of which `chosen` are not zero; noise is drawn in training alone."""
        raw = self.net(map_.mean((2, 3)))
        logits, spread = at_least_float32(raw).chunk(2, dim=1)
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(spread)
            self.share = logits.softmax(1).mean(0)
        best = logits.topk(self.chosen, dim=1)
        return torch.zeros_like(logits).scatter(1, best.indices, best.values.softmax(1))


class MLoREModule(nn.Module):
    """Task-generic path + chosen shared experts + the task's own expert, then BatchNorm and GELU."""

    def __init__(self, width: int, tasks: Sequence[str], ranks: Sequence[int], own_rank: int, chosen: int) -> None:
        super().__init__()
        self.generic = nn.Conv2d(width, width, 3, padding=1)
        self.experts = LowRankExperts(width, ranks)
        self.enter = nn.ModuleDict({task: nn.Conv2d(width, width, 1) for task in tasks})
        self.own = nn.ModuleDict({task: LowRankExperts(width, (own_rank,)) for task in tasks})
        self.routers = nn.ModuleDict({task: ExpertRouter(width, len(ranks), chosen) for task in tasks})
        self.norms = nn.ModuleDict({task: nn.BatchNorm2d(width) for task in tasks})

    def forward(self, task: str, map_: Tensor) -> Tensor:
        """One task's (B, C, H, W) -> the same shape."""
        entered = self.enter[task](map_)
        gates = self.routers[task](entered)
        mixed = self.generic(entered) + self.experts(entered, gates) + self.own[task](entered)
        return F.gelu(self.norms[task](mixed))

    def imbalance(self) -> Tensor | None:
        """The squared coefficient of variation of the experts' shares over the tasks just seen; see `imbalance`."""
        routers: list[Any] = list(self.routers.values())
        shares = [router.share for router in routers if router.share is not None]
        for router in routers:
            router.share = None
        return imbalance(torch.stack(shares).mean(0)) if shares else None


def imbalance(shares: Tensor) -> Tensor:
    """(std / mean) squared of the experts' shares (E,): 0 where all are used alike, E where one alone is."""
    return (shares.std() / shares.mean()).square()


class MLoREHead(nn.Module):
    """One task's end: levels joined on the first one's grid, enlarged to a quarter of the image, two convolutions."""

    def __init__(self, width: int, levels: int, channels: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(levels * width, width, 1)
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Levels (B, C, H, W) -> (B, channels, *size)."""
        grid = (maps[0].shape[-2], maps[0].shape[-1])
        joined = self.join(torch.cat([bilinear_resize(map_, grid) for map_ in maps], dim=1))
        return self.out(self.fuse(bilinear_resize(joined, size)))


class MLoREDecoder(Decoder):
    """Per level: a projection for each task, then modules whose generic path and experts all tasks share."""

    crosses_tasks = False  # tasks share weights, not features

    def __init__(self, shape: DecoderShape, *, sizes: MLoRESizes = SIZES, chosen: int = CHOSEN) -> None:
        super().__init__()
        width = max(4, shape.width * sizes.width[0] // sizes.width[1])
        tasks, count = tuple(shape.tasks), len(shape.level_widths)
        self.enlarge = shape.enlarge
        self.enter = nn.ModuleList(
            nn.ModuleDict({task: nn.Conv2d(own, width, 1) for task in tasks}) for own in shape.level_widths
        )
        self.refine = nn.ModuleList(
            nn.ModuleList(MLoREModule(width, tasks, sizes.ranks, sizes.own_rank, chosen) for _ in range(MODULES))
            for _ in range(count)
        )
        self.ends = nn.ModuleDict({task: MLoREHead(width, count, channels) for task, channels in shape.tasks.items()})

    def forward(self, features: Mapping[str, FeatureMaps]) -> Decoded:
        """See Decoder; the imbalance is the sum over all modules, of this process's images."""
        predictions = {task: self._predict(task, maps) for task, maps in features.items()}
        stacks: list[Any] = list(self.refine)
        imbalances = [module.imbalance() for modules in stacks for module in modules] if self.training else []
        return Decoded(predictions, imbalance=torch.stack(imbalances).sum() if imbalances else None)

    def _predict(self, task: str, features: FeatureMaps) -> Tensor:
        entries: list[Any] = list(self.enter)
        stacks: list[Any] = list(self.refine)
        refined = []
        for map_, enter, modules in zip(features, entries, stacks, strict=True):
            level = enter[task](map_)
            for module in modules:
                level = module(task, level)
            refined.append(level)
        return self.ends[task](refined, quarter_size(features, self.enlarge))
