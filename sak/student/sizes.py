"""Sizes of the stems: the paper's three, any ViT of timm that is built like them, RADIO's, or one's own."""

from dataclasses import dataclass, replace
from functools import lru_cache

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from sak.errors import UsageError, nearest
from sak.variants.swin import SwinSize

PATCH = 16


@dataclass(frozen=True)
class StemSize:
    """A ViT's size: channels, blocks, attention heads; patch 16 and an MLP four times as wide are the same for all.

    RADIO's ViTs also have `registers` (tokens beside the class token), `layer_scale`, and no position embedding for the
    special tokens (`class_position: false`).
    """

    width: int
    depth: int
    heads: int
    registers: int = 0
    layer_scale: bool = False
    class_position: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that no ViT has."""
        sizes = (self.width, self.depth, self.heads)
        if any(not isinstance(size, int) or size < 1 for size in sizes) or self.width % self.heads:
            raise UsageError(f"a stem's sizes are whole numbers from 1, its width a multiple of its heads, got {self}")
        if not isinstance(self.registers, int) or self.registers < 0 or (self.registers and self.class_position):
            raise UsageError(f"registers are a whole number from 0, and need class_position: false, got {self}")

    @property
    def prefix(self) -> int:
        """Special tokens before the patches."""
        return 1 + self.registers

    @property
    def multiple(self) -> int:
        """Image sides are multiples of this."""
        return PATCH

    def width_at(self, level: int) -> int:
        """Channels after a block: the same for all."""
        del level
        return self.width

    def stride_at(self, level: int) -> int:
        """Pixels from one token of a level to the next."""
        del level
        return PATCH


AnyStemSize = StemSize | SwinSize

STEMS: dict[str, StemSize] = {
    "vit_small_patch16_384.augreg_in21k_ft_in1k": StemSize(width=384, depth=12, heads=6),
    "vit_base_patch16_384.augreg_in21k_ft_in1k": StemSize(width=768, depth=12, heads=12),
    "vit_large_patch16_384.augreg_in21k_ft_in1k": StemSize(width=1024, depth=24, heads=16),
}
"""The paper's stems, by their full timm names."""

_THEIA = {
    "theia_tiny_patch16_224.cdiv": StemSize(width=192, depth=12, heads=3),
    "theia_small_patch16_224.cdiv": StemSize(width=384, depth=12, heads=6),
    "theia_base_patch16_224.cdiv": StemSize(width=768, depth=12, heads=12),
}


def stem_size(stem: str | AnyStemSize) -> AnyStemSize:
    """The size of a stem given by name or by size; `UsageError` where the name is unknown or no stem can be it."""
    if not isinstance(stem, str):
        return stem
    known = STEMS | _THEIA
    return known[stem] if stem in known else _timm_size(stem)


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
        reg_tokens=size.registers,
        init_values=1e-5 if size.layer_scale else None,
        no_embed_class=not size.class_position,
    )


@lru_cache(maxsize=64)
def _timm_size(name: str) -> AnyStemSize:
    if not timm.is_model(name):
        raise UsageError(f"stem {name!r} is no timm model{nearest(name, STEMS | _THEIA)}")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if isinstance(model, SwinTransformer):
        return _swin_size(name, model)
    if not isinstance(model, VisionTransformer) or model.patch_embed.patch_size != (PATCH, PATCH):
        raise UsageError(f"stem {name!r} is no ViT with patch {PATCH} and no Swin{nearest(name, STEMS)}")
    size = StemSize(width=model.embed_dim, depth=len(model.blocks), heads=model.blocks[0].attn.num_heads)
    if "radio" in name:  # others with such parts have not been tried
        size = replace(size, registers=model.num_reg_tokens, layer_scale=True, class_position=False)
    with torch.device("meta"):
        plain = plain_vit(size, model.patch_embed.img_size)
    _check_plain(name, model, plain)
    return size


def _swin_size(name: str, model: SwinTransformer) -> SwinSize:
    block = model.layers[0].blocks[0]
    if tuple(model.patch_embed.patch_size) != (4, 4) or "s3" in name or len(set(block.window_size)) != 1:
        raise UsageError(f"stem {name!r} is no Swin with patch 4 and one square window{nearest(name, STEMS)}")
    return SwinSize(
        embed=model.embed_dim,
        depths=tuple(len(stage.blocks) for stage in model.layers),
        heads=tuple(stage.blocks[0].attn.num_heads for stage in model.layers),
        window=block.window_size[0],
    )


def _check_plain(name: str, model: VisionTransformer, plain: VisionTransformer) -> None:
    """Refuse a ViT that has other parts than the stem, or the same parts with another epsilon."""
    theirs = {key for key in model.state_dict() if not key.startswith(("norm.", "fc_norm.", "head."))}
    other = sorted(theirs ^ set(plain.state_dict()))
    if other:
        raise UsageError(f"stem {name!r} is no plain ViT with class token: it differs in {', '.join(other[:3])}")
    eps = model.blocks[0].norm1.eps
    if eps != plain.blocks[0].norm1.eps:
        raise UsageError(f"stem {name!r} has LayerNorm eps {eps}, the stem's is {plain.blocks[0].norm1.eps}")
