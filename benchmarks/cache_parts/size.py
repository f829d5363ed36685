"""How much a run reads and writes."""

from dataclasses import dataclass

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Size:
    """How much is read and written."""

    tokens: int = 576
    channels: int = 768
    samples: int = 512
    block: int = 256
    batch: int = 64
    wide: int = 10_000  # samples of the column whose first batch is timed
    rounds: int = 24
    few: int = 7


QUICK = Size(tokens=64, channels=256, samples=128, block=32, batch=32, wide=512, rounds=4, few=2)
