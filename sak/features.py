"""Feature maps: the one form in which teachers and the student hand over what they saw.

Maps are (B, C, H, W), tokens are (B, N, C). Levels are block numbers counted from 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Map = TypeVar("Map")


@dataclass(frozen=True)
class LevelMaps(Generic[Map]):
    """One model's levels, by block numbers, and what is held of each."""

    levels: tuple[int, ...]
    maps: tuple[Map, ...]

    def __post_init__(self) -> None:
        """Refuse levels and maps that do not belong together."""
        if len(self.levels) != len(self.maps):
            raise ValueError(f"{len(self.levels)} levels {self.levels} but {len(self.maps)} maps")

    def __iter__(self) -> Iterator[Map]:
        """The maps, shallowest first."""
        return iter(self.maps)

    def __len__(self) -> int:
        """How many levels."""
        return len(self.levels)

    @property
    def names(self) -> tuple[str, ...]:
        """Level names as losses and reports write them: `level3` is block 3."""
        return tuple(f"level{level}" for level in self.levels)


@dataclass(frozen=True)
class FeatureMaps(LevelMaps[Tensor]):
    """One model's levels as (B, C, H, W) maps, in the order of the blocks they were tapped from.

    A teacher and a student of different depth are paired by position, not by block number: levels (6, 12, 18, 24) of
    an L teacher meet levels (3, 6, 9, 12) of a B student.
    """

    def __post_init__(self) -> None:
        """Refuse levels that are no increasing block numbers, and what is no map."""
        super().__post_init__()
        if list(self.levels) != sorted(set(self.levels)) or any(level < 1 for level in self.levels):
            raise ValueError(f"levels must be increasing block numbers from 1, got {self.levels}")
        for level, map_ in zip(self.levels, self.maps, strict=True):
            if map_.ndim != 4:
                raise ValueError(f"level {level}: a map is (B, C, H, W), got shape {tuple(map_.shape)}")

    def __getitem__(self, level: int) -> Tensor:
        """The map of block number `level`; KeyError names the levels there are."""
        if level not in self.levels:
            raise KeyError(f"no level {level}; levels are {self.levels}")
        return self.maps[self.levels.index(level)]

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the maps; ValueError where the levels differ in it (a hierarchical backbone)."""
        grids = [(map_.shape[-2], map_.shape[-1]) for map_ in self.maps]
        if any(grid != grids[0] for grid in grids):
            raise ValueError(f"levels have different grids: {grids}")
        return grids[0]

    @property
    def width(self) -> int:
        """Channels of the shallowest level."""
        return self.maps[0].shape[1]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "FeatureMaps":
        """The same levels with `function` applied to every map."""
        return FeatureMaps(self.levels, tuple(function(map_) for map_ in self.maps))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened to float32; float64 stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def default_levels(depth: int) -> tuple[int, ...]:
    """Blocks L/4, L/2, 3L/4 and L of a model of `depth` blocks (paper, section 3.2)."""
    if depth < 4 or depth % 4:
        raise ValueError(f"default levels need a depth that is a multiple of 4, got {depth}; name the levels")
    return tuple(depth * quarter // 4 for quarter in (1, 2, 3, 4))


def tokens_to_map(tokens: Tensor, *, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Drop `prefix` special tokens and fold the rest: (B, P + H*W, C) -> (B, C, H, W), row by row."""
    batch, count, channels = tokens.shape
    height, width = grid
    if count != prefix + height * width:
        raise ValueError(f"{count} tokens are not {prefix} special ones and a {height}x{width} grid")
    return tokens[:, prefix:].transpose(1, 2).reshape(batch, channels, height, width)


def map_to_tokens(map_: Tensor) -> Tensor:
    """Unfold a map row by row: (B, C, H, W) -> (B, H*W, C)."""
    return map_.flatten(2).transpose(1, 2)


def bilinear_resize(map_: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) to (B, C, *size) as the distillation loss does: align_corners False, no antialias."""
    if tuple(map_.shape[-2:]) == tuple(size):
        return map_
    return F.interpolate(map_, size=size, mode="bilinear", align_corners=False)


@lru_cache(maxsize=256)
def resize_matrix(source: int, target: int) -> Tensor:
    """The 1-D factor of `bilinear_resize` as a float64 matrix (target, source); do not write into it.

    The resize is separable: `bilinear_resize(t, (H, W)) == resize_matrix(h, H) @ t @ resize_matrix(w, W).T`.
    """
    if source < 1 or target < 1:
        raise ValueError(f"sizes must be positive, got {source} -> {target}")
    positions = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = positions.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    weight = positions - low
    matrix = torch.zeros(target, source, dtype=torch.float64)
    rows = torch.arange(target)
    matrix.index_put_((rows, low), 1 - weight, accumulate=True)
    matrix.index_put_((rows, high), weight, accumulate=True)
    return matrix
