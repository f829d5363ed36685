"""Decoders: fused levels of every task into predictions at a quarter of the image's size, behind one interface.

`simple` is the paper's head per task; `mlore` and `invpt` are those of Table 5 and 9, in which tasks see each other.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sak.student.decoders.base import Decoder, DecoderShape
from sak.student.decoders.invpt import InvPTDecoder
from sak.student.decoders.mlore import MLoREDecoder
from sak.student.decoders.simple import SimpleDecoder

if TYPE_CHECKING:
    from sak.student.config import StudentConfig

DECODERS: Mapping[str, Callable[[DecoderShape], Decoder]] = {
    "simple": SimpleDecoder,
    "mlore": MLoREDecoder,
    "invpt": InvPTDecoder,
}

__all__ = ["DECODERS", "Decoder", "DecoderShape", "make_decoder"]


def make_decoder(config: "StudentConfig") -> Decoder:
    """The decoder that a student's configuration names."""
    first = config.size.stride_at(config.tapped[0])
    shape = DecoderShape(config.size.width, config.level_widths, first // 4, dict(config.tasks))
    return DECODERS[config.decoder](shape)
