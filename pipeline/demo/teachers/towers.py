"""The towers to train: a registered demo teacher's own architecture, from the random weights its seed names."""

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from pipeline.demo.weights.shipped import demo_model
from sak.teachers import build_teacher


def new_tower(name: str, seed: int) -> Any:
    """The timm model of `demo/<name>` at its own size, with the weights `random:SEED`, ready to be trained."""
    model = demo_model(name)
    teacher = build_teacher(f"demo/{name}", weights=f"random:{seed}", image_size=model.side, device="cpu")
    return teacher.tower.model.requires_grad_(True).train()


def vit_levels(
    tower: Any, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
) -> tuple[Tensor, ...]:
    """All tokens of a plain ViT after each quarter of its blocks, images of any size: (B, 3, H, W) -> (B, 1 + n, C).

    Positions are resampled to the images' grid. Patches where `mask` (B, n) holds are replaced by `mask_token` (C,).
    """
    patch = tower.patch_embed.patch_size[0]
    grid = [images.shape[-2] // patch, images.shape[-1] // patch]
    patches = tower.patch_embed.proj(images).flatten(2).transpose(1, 2)
    if mask is not None and mask_token is not None:
        patches = torch.where(mask[..., None], mask_token.to(patches.dtype), patches)
    tokens = torch.cat((tower.cls_token.expand(len(images), -1, -1), patches), dim=1)
    tokens = tokens + resample_abs_pos_embed(tower.pos_embed, grid, num_prefix_tokens=1)
    return by_quarters(tower.blocks, tower.norm_pre(tokens))


def vit_tokens(tower: Any, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """`vit_levels` of the last block alone."""
    return vit_levels(tower, images, mask, mask_token)[-1]


def by_quarters(blocks: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """What leaves each quarter of the blocks."""
    levels = []
    for number, block in enumerate(blocks, start=1):
        tokens = block(tokens)
        if 4 * number % len(blocks) == 0:
            levels.append(tokens)
    return tuple(levels)
