"""Every decoder by the name that a configuration says; another one is entered here alone.

`simple` is the paper's head per task; the others are those of Tables 5, 6 and 9, in which tasks share weights (`mlore`,
and `mlore-wide` with the sizes of its runs on NYUD-v2) or attention (`invpt`).
"""

from collections.abc import Callable
from functools import partial

from sak.student.heads import Decoder, DecoderShape, SimpleDecoder
from sak.variants.invpt import InvPTDecoder
from sak.variants.mlore import WIDE, MLoREDecoder

DECODERS: dict[str, Callable[[DecoderShape], Decoder]] = {
    "simple": SimpleDecoder,
    "mlore": MLoREDecoder,
    "mlore-wide": partial(MLoREDecoder, sizes=WIDE),
    "invpt": InvPTDecoder,
}
