"""A hierarchical stem: a timm Swin that hands out the tokens after every block, of four stages and as many grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from sak.errors import UsageError
from sak.features import map_to_tokens, tokens_to_map
from sak.student.adapter_path import Adapter, StackedPaths, run_block

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
        numbers = (self.embed, self.window, *self.depths, *self.heads)
        if any(not isinstance(number, int) or number < 1 for number in numbers) or len(self.depths) != len(self.heads):
            raise UsageError(f"a Swin's sizes are numbers numbers from 1, as many heads as depths, got {self}")
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


class SwinStem(nn.Module):
    """Levels are stages: a level's tokens are those after the stage's last block. No class token, no final norm.

    Windows are of one size in every stage and at every image size (timm's `always_partition`): smaller grids are
    padded, so that the position biases of all sizes have one shape.
    """

    def __init__(self, size: SwinSize, image_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.swin = SwinTransformer(
            img_size=image_size,
            patch_size=SWIN_PATCH,
            embed_dim=size.embed,
            depths=size.depths,
            num_heads=size.heads,
            window_size=size.window,
            num_classes=0,
            global_pool="",
            drop_path_rate=0.0,
            always_partition=True,
        )
        self.swin.norm = nn.Identity()
        self.image_size = image_size
        self._ends = tuple(accumulate(size.depths))
        self.gradient_checkpointing = gradient_checkpointing

    @property
    def model(self) -> nn.Module:
        """The timm model that weights are for."""
        return self.swin

    def index(self, level: int) -> int:
        """Which of `forward`'s tokens are those of a level."""
        return self._ends[level - 1]

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether images of this (height, width) may come."""
        return size == self.image_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Z_0 (patch embedding) and the tokens after each block: (B, 3, H, W) -> D+1 x (B, n, C), n and C by stage."""
        map_ = self.swin.patch_embed(images)
        tokens = [map_.flatten(1, 2)]
        for stage in self.swin.layers:
            map_ = stage.downsample(map_)
            for block in stage.blocks:
                map_ = run_block(self, block, map_)
                tokens.append(map_.flatten(1, 2))
        return tuple(tokens)


class SwinPath(nn.Module):
    """One teacher's adapters, one after the embedding and one after each block, and a carry from stage to stage.

    The carry halves the path's grid by averaging and doubles its channels by a linear map without bias: our choice,
    the paper describes paths of one width.
    """

    def __init__(self, size: SwinSize, down_ratio: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(width, width // down_ratio) for width in block_widths(size))
        self.carries = nn.ModuleList(
            nn.Linear(size.width_at(level), size.width_at(level + 1), bias=False) for level in range(1, size.depth)
        )


class SwinPaths(StackedPaths):
    """Equation 2 beside a Swin: R_0 = a_0(Z_0), R_b = a_b(R_{b-1} + Z_b), with R carried down where a stage begins."""

    def __init__(
        self,
        teachers: Sequence[str],
        size: SwinSize,
        image_size: tuple[int, int],
        *,
        down_ratio: int,
        gradient_checkpointing: bool = False,
    ) -> None:
        paths = {teacher: SwinPath(size, down_ratio) for teacher in teachers}
        super().__init__(paths, gradient_checkpointing=gradient_checkpointing)
        self._ends = tuple(accumulate(size.depths))
        self._image_size = image_size

    def forward(self, stem_tokens: Sequence[Tensor], levels: Sequence[int]) -> tuple[Tensor, ...]:
        """R after the last block of the given stages: D+1 x (B, n, C) -> len(levels) x (N, B, n, C), by stage."""
        paths = self.step(0, None, stem_tokens[0])
        tapped: dict[int, Tensor] = {}
        for block in range(1, len(stem_tokens)):
            if block - 1 in self._ends:
                paths = self._carry(self._ends.index(block - 1), paths)
            paths = self.run(block, paths, stem_tokens[block])
            if block in self._ends:
                tapped[self._ends.index(block) + 1] = paths
        return tuple(tapped[level] for level in levels)

    def adapters(self, block: int) -> list[Adapter]:
        """See StackedPaths."""
        return [path.adapters[block] for path in self._paths()]

    def _carry(self, stage: int, paths: Tensor) -> Tensor:
        """(N, B, n, C) of stage number `stage`, from 0 -> (N, B, n/4, 2C)."""
        stride = SWIN_PATCH * 2**stage
        grid = self._image_size[0] // stride, self._image_size[1] // stride
        halved = map_to_tokens(F.avg_pool2d(tokens_to_map(paths.flatten(0, 1), prefix=0, grid=grid), 2))
        halved = halved.unflatten(0, paths.shape[:2])
        return torch.stack([path.carries[stage](halved[i]) for i, path in enumerate(self._paths())])

    def _paths(self) -> list[Any]:
        """The teachers' `SwinPath`s, in order."""
        return list(self.values())


def block_widths(size: SwinSize) -> list[int]:
    """Channels after the embedding and after each block."""
    widths = [size.width_at(level) for level, depth in enumerate(size.depths, start=1) for _ in range(depth)]
    return [size.embed, *widths]
