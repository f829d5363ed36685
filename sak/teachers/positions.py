"""Position embeddings at another grid than the one they were learnt on."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.errors import SakError
from sak.teachers.recipe import Size


def resample_tokens(embedding: Tensor, *, prefix: int, old: Size, new: Size) -> Tensor:
    """Bicubic with antialias, as timm and open_clip do: (1, P + h*w, C) -> (1, P + H*W, C).

    The first `prefix` rows belong to special tokens and stay as they are.
    """
    if old == new:
        return embedding
    special, grid = embedding[:, :prefix], embedding[:, prefix:]
    maps = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([special, maps.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resample_map(embedding: Tensor, new: Size) -> Tensor:
    """SAM's absolute embedding, bicubic without antialias (published code): (1, h, w, C) -> (1, H, W, C)."""
    if tuple(embedding.shape[1:3]) == new:
        return embedding
    maps = F.interpolate(embedding.permute(0, 3, 1, 2), size=new, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1)


def resample_relative(table: Tensor, length: int) -> Tensor:
    """SAM's relative embedding along one axis, linear: (2h - 1, C) -> (length, C)."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T


def grid_of(count: int, native: Size, where: str) -> Size:
    """The grid that `count` position embeddings form: the native one where it fits, else a square."""
    if count == native[0] * native[1]:
        return native
    side = isqrt(max(count, 0))
    if side < 1 or side * side != count:
        raise SakError(f"{where}: {count} position embeddings form neither the {native} grid nor a square one")
    return side, side
