"""The size of a Swin stem: a hierarchical one, whose levels are its stages."""

from dataclasses import dataclass

from sak.errors import UsageError

SWIN_PATCH = 4


@dataclass(frozen=True)
class SwinSize:
    """Channels of the first stage, blocks and attention heads by stage, and the side of the square window.

    Each stage has twice the channels and half the grid of the one before; patch 4.
    """

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7

    def __post_init__(self) -> None:
        """Refuse sizes that no Swin has."""
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "heads", tuple(self.heads))
        whole = (self.embed, self.window, *self.depths, *self.heads)
        if any(not isinstance(number, int) or number < 1 for number in whole) or len(self.depths) != len(self.heads):
            raise UsageError(f"a Swin's sizes are whole numbers from 1, as many heads as depths, got {self}")
        if any(self.width_at(stage) % heads for stage, heads in enumerate(self.heads, start=1)):
            raise UsageError(f"a Swin stage's width must be a multiple of its heads, got {self}")

    @property
    def depth(self) -> int:
        """Stages: what levels count."""
        return len(self.depths)

    @property
    def width(self) -> int:
        """Channels of the last stage, which are also the heads'."""
        return self.width_at(self.depth)

    @property
    def prefix(self) -> int:
        """Special tokens before the patches: none."""
        return 0

    @property
    def multiple(self) -> int:
        """Image sides are multiples of this."""
        return self.stride_at(self.depth)

    def width_at(self, level: int) -> int:
        """Channels of a stage, counted from 1."""
        return self.embed * 2 ** (level - 1)

    def stride_at(self, level: int) -> int:
        """Pixels from one token of a stage to the next."""
        return SWIN_PATCH * 2 ** (level - 1)
