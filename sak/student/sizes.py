"""Sizes of the stems: the paper's three, any plain timm ViT by name, or one's own."""

from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from sak.errors import UsageError, nearest

PATCH = 16


@dataclass(frozen=True)
class StemSize:
    """A ViT's size: channels, blocks, attention heads; patch 16 and an MLP four times as wide are the same for all."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        """Refuse sizes that no ViT has."""
        sizes = (self.width, self.depth, self.heads)
        if any(not isinstance(size, int) or size < 1 for size in sizes) or self.width % self.heads:
            raise UsageError(f"a stem's sizes are whole numbers from 1, its width a multiple of its heads, got {self}")


STEMS: dict[str, StemSize] = {
    "vit_small_patch16_384.augreg_in21k_ft_in1k": StemSize(width=384, depth=12, heads=6),
    "vit_base_patch16_384.augreg_in21k_ft_in1k": StemSize(width=768, depth=12, heads=12),
    "vit_large_patch16_384.augreg_in21k_ft_in1k": StemSize(width=1024, depth=24, heads=16),
}
"""The paper's stems, by their full timm names."""


def stem_size(stem: str | StemSize) -> StemSize:
    """The size of a stem given by name or by size; `UsageError` where the name is unknown or no plain ViT."""
    if isinstance(stem, StemSize):
        return stem
    return STEMS[stem] if stem in STEMS else _timm_size(stem)


def plain_vit(size: StemSize, image_size: tuple[int, int]) -> VisionTransformer:
    """A timm ViT as the stem uses it: class token, LayerNorm eps 1e-6, no final norm, no classifier."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=0,
        global_pool="",
        final_norm=False,
    )


@lru_cache(maxsize=64)
def _timm_size(name: str) -> StemSize:
    if not timm.is_model(name):
        raise UsageError(f"stem {name!r} is no timm model{nearest(name, STEMS)}")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if not isinstance(model, VisionTransformer) or model.patch_embed.patch_size != (PATCH, PATCH):
        raise UsageError(f"stem {name!r} is no ViT with patch {PATCH}{nearest(name, STEMS)}")
    size = StemSize(width=model.embed_dim, depth=len(model.blocks), heads=model.blocks[0].attn.num_heads)
    with torch.device("meta"):
        plain = plain_vit(size, model.patch_embed.img_size)
    _check_plain(name, model, plain)
    return size


def _check_plain(name: str, model: VisionTransformer, plain: VisionTransformer) -> None:
    """Refuse a ViT that has other parts than the stem, or the same parts with another epsilon."""
    theirs = {key for key in model.state_dict() if not key.startswith(("norm.", "fc_norm.", "head."))}
    other = sorted(theirs ^ set(plain.state_dict()))
    if other:
        raise UsageError(f"stem {name!r} is no plain ViT with class token: it differs in {', '.join(other[:3])}")
    eps = model.blocks[0].norm1.eps
    if eps != plain.blocks[0].norm1.eps:
        raise UsageError(f"stem {name!r} has LayerNorm eps {eps}, the stem's is {plain.blocks[0].norm1.eps}")
