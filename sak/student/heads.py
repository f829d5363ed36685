"""Decoders: the fused levels of every task into predictions; the paper's is one simple head per task.

The head: a linear layer per level, then two convolutions at a quarter of the image's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.features import FeatureMaps, bilinear_resize, map_to_tokens, tokens_to_map


@dataclass(frozen=True)
class DecoderShape:
    """What a decoder is built for.

    Attributes:
        width: of the stem (its last stage's).
        level_widths: channels of every level, shallowest first.
        enlarge: how many times the first level's grid goes into a quarter of the image's size: 4 at patch 16.
        tasks: task -> channels of its prediction.
    """

    width: int
    level_widths: tuple[int, ...]
    enlarge: int
    tasks: Mapping[str, int]


@dataclass(frozen=True)
class Decoded:
    """What a decoder says.

    Attributes:
        tasks: task -> prediction (B, channels, H/4, W/4 of the image).
        preliminary: in training, task -> an earlier guess (B, channels, h, w) that has the task's loss too.
        imbalance: in training, a scalar that is smaller the more evenly routers use their experts; else None.
    """

    tasks: dict[str, Tensor]
    preliminary: dict[str, Tensor] = field(default_factory=dict)
    imbalance: Tensor | None = None


class Decoder(nn.Module):
    """Task -> fused levels (B, C, H, W) into predictions at a quarter of the image's size.

    `crosses_tasks`: a prediction needs the features of all tasks, so all are always given.
    """

    crosses_tasks = False

    def forward(self, features: Mapping[str, FeatureMaps]) -> Decoded:
        """The predictions of the tasks given."""
        raise NotImplementedError


class SimpleHead(nn.Module):
    """Linear(C, C/4) per level, concatenated at `enlarge` times the first grid, Conv 3x3 - BatchNorm - GELU - Conv 1x1.

    `widths` are the levels' channels where they are not all `width`, as in a hierarchical stem; the first level's grid
    is then enlarged less, to a quarter of the image all the same.
    """

    def __init__(
        self, width: int, levels: int, channels: int, *, widths: Sequence[int] | None = None, enlarge: int = 4
    ) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.linears = nn.ModuleList(nn.Linear(own, width // 4) for own in widths or [width] * levels)
        self.fuse = nn.Sequential(nn.Conv2d(levels * (width // 4), width, 3, padding=1), nn.BatchNorm2d(width))
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, features: FeatureMaps) -> Tensor:
        """Levels (B, C, H, W) -> (B, channels, 4H, 4W), a quarter of the image's size at patch 16."""
        size = quarter_size(features, self.enlarge)
        reduced = [
            bilinear_resize(reduce_channels(linear, map_), size)
            for linear, map_ in zip(self.linears, features, strict=True)
        ]
        return self.out(F.gelu(self.fuse(torch.cat(reduced, dim=1))))


def quarter_size(features: FeatureMaps, enlarge: int) -> tuple[int, int]:
    """(height, width) of a quarter of the image, from the first level's grid."""
    return enlarge * features.maps[0].shape[-2], enlarge * features.maps[0].shape[-1]


def reduce_channels(linear: nn.Module, map_: Tensor) -> Tensor:
    """A linear layer at every position: (B, C, H, W) -> (B, C', H, W)."""
    return tokens_to_map(linear(map_to_tokens(map_)), prefix=0, grid=(map_.shape[-2], map_.shape[-1]))


class SimpleDecoder(Decoder, nn.ModuleDict):
    """`<task>` -> SimpleHead."""

    def __init__(self, shape: DecoderShape) -> None:
        count, widths = len(shape.level_widths), shape.level_widths
        nn.ModuleDict.__init__(
            self,
            {
                task: SimpleHead(shape.width, count, channels, widths=widths, enlarge=shape.enlarge)
                for task, channels in shape.tasks.items()
            },
        )

    def forward(self, features: Mapping[str, FeatureMaps]) -> Decoded:
        """See Decoder."""
        return Decoded({task: self[task](maps) for task, maps in features.items()})
