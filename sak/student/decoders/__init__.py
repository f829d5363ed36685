"""Decoders: fused levels of every task into predictions at a quarter of the image's size, behind one interface.

`simple` is the paper's head per task; the others are those of Tables 5, 6 and 9, in
which tasks share weights (`mlore`, and `mlore-wide` with the sizes of its runs on NYUD-v2) or attention (`invpt`).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sak.student.decoders.base import Decoded, Decoder, DecoderShape
from sak.student.decoders.invpt import InvPTDecoder
from sak.student.decoders.mlore import WIDE, MLoREDecoder
from sak.student.decoders.simple import SimpleDecoder

if TYPE_CHECKING:
    from sak.student.config import StudentConfig

DECODERS: dict[str, Callable[[DecoderShape], Decoder]] = {
    "simple": SimpleDecoder,
    "mlore": MLoREDecoder,
    "mlore-wide": partial(MLoREDecoder, sizes=WIDE),
    "invpt": InvPTDecoder,
}
"""Every decoder by the name that a configuration says; another one is entered here alone."""

__all__ = ["DECODERS", "Decoded", "Decoder", "DecoderShape", "make_decoder"]


def make_decoder(config: "StudentConfig") -> Decoder:
    """The decoder that a student's configuration names."""
    first = config.size.stride_at(config.tapped[0])
    shape = DecoderShape(config.size.width, config.level_widths, first // 4, dict(config.tasks))
    return DECODERS[config.decoder](shape)
