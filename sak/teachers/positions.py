"""Position embeddings at another grid than the one they were learnt on, and SAM's attention, which has its own.

SAM adds decomposed relative positions to the attention of every block. What timm and segment_anything share of it is
here: the resampling of both kinds of embedding, and the attention as one fused call.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.errors import SakError
from sak.teachers.recipe import Size
from sak.teachers.teacher import Blueprint, Tower
from sak.teachers.weights import State


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


class FusedAttention(nn.Module):
    """Multi-head attention with decomposed relative positions; takes over a library's parameters and their names.

    The libraries form the (4096, 4096) attention per head by themselves, or hand it to a fused call in a shape that no
    fused kernel takes. Here the relative positions are the bias of a call that one does. Equal but for rounding.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads = int(attention.num_heads)
        self.qkv: nn.Linear = attention.qkv
        self.proj: nn.Linear = attention.proj
        self.rel_pos_h: nn.Parameter = attention.rel_pos_h
        self.rel_pos_w: nn.Parameter = attention.rel_pos_w

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); H and W are those that the relative embeddings were made for."""
        batch, height, width, channels = tokens.shape
        heads = self.qkv(tokens.flatten(1, 2)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, H*W, C / heads)
        on_grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", on_grid, _pairs(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", on_grid, _pairs(self.rel_pos_w, width))
        bias = rows.contiguous()[..., :, None] + columns.contiguous()[..., None, :]  # contiguous: 0.8 GB, not copied
        bias = bias.view(batch, self.num_heads, height * width, height * width)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, height, width, channels))
        return out


def _pairs(table: Tensor, length: int) -> Tensor:
    """The embedding of every (query, key) distance along one axis: (2 * length - 1, C) -> (length, length, C)."""
    positions = torch.arange(length, device=table.device)
    return table[positions[:, None] - positions[None, :] + length - 1]


def fuse_attention(blocks: nn.Module) -> None:
    """Put FusedAttention in the place of every block's own; its parameters keep their names."""
    for block in blocks.children():
        block.attn = FusedAttention(block.attn)


@dataclass(frozen=True, kw_only=True)
class SamBlueprint(Blueprint):
    """What the libraries' SAMs share: the names and the resampling of their position embeddings."""

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """The absolute embedding and the relative ones of global attention; those of windows have one size always."""
        global_blocks = [index for index, block in enumerate(tower.model.blocks) if block.window_size == 0]
        names = ["pos_embed", *(f"blocks.{index}.attn.rel_pos_{axis}" for index in global_blocks for axis in "hw")]
        return tuple(name for name in names if name in tower.shapes())

    def resample(self, state: State, tower: Tower) -> State:
        """Absolute embedding bicubic without antialias (timm's own has it), relative ones linear (published code)."""
        shapes = tower.shapes()
        changed = dict(state)
        for name in self.grid_tensors(tower):
            if name == "pos_embed":
                changed[name] = resample_map(state[name], (shapes[name][1], shapes[name][2]))
            else:
                changed[name] = resample_relative(state[name], shapes[name][0])
        return changed
