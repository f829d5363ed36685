"""What a decoder is given, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass

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


class Decoder(nn.Module):
    """Task -> fused levels (B, C, H, W) into task -> prediction (B, channels, H/4, W/4 of the image).

    `crosses_tasks`: a prediction needs the features of all tasks, so all are always given.
    """

    crosses_tasks = False

    def forward(self, features: Mapping[str, FeatureMaps]) -> dict[str, Tensor]:
        """The predictions of the tasks given."""
        raise NotImplementedError
