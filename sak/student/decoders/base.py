"""What a decoder is given, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from sak.features import FeatureMaps


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
