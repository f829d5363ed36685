"""The paper's decoder: one simple head per task, each by itself."""

from collections.abc import Mapping

from torch import nn

from sak.features import FeatureMaps
from sak.student.decoders.base import Decoded, Decoder, DecoderShape
from sak.student.heads import SimpleHead


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
