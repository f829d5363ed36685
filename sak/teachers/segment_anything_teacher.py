"""Teachers from segment_anything: the image encoder of SAM, without neck, prompt encoder and mask decoder."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.teachers.positions import SamBlueprint, fuse_attention
from sak.teachers.preprocess import IMAGENET
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.registry import SAM_URLS, UrlFile
from sak.teachers.teacher import Tower, first_eps
from sak.teachers.weights import State

OVERRIDES = ("embed_dim", "depth", "num_heads", "window_size")
NATIVE_SIDE = 1024


# What the library's builder gives each encoder; blocks with global attention are counted from 0.
SIZES: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}


class SegmentAnythingTower(Tower):
    """segment_anything's ImageEncoderViT, block by block: it returns nothing but the neck's output by itself."""

    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """See Tower."""
        tokens = self.model.patch_embed(images) + self.model.pos_embed
        taps = []
        for number, block in enumerate(self.model.blocks, start=1):
            tokens = block(tokens)
            if number in levels:
                taps.append(tokens.permute(0, 3, 1, 2).contiguous())
        return taps


@dataclass(frozen=True, kw_only=True)
class SegmentAnythingBlueprint(SamBlueprint):
    """One of the three encoders; the library builds them at 1024 alone, so the encoder is drawn from its parts."""

    def draw(self, size: Size) -> SegmentAnythingTower:
        """See Blueprint; the arguments are those of the library's `build_sam`, LayerNorm epsilon 1e-6 among them."""
        sizes = {"window_size": 14, **SIZES[self.recipe.architecture], **self.recipe.overrides}
        with torch.device("meta"):
            model = ImageEncoderViT(
                img_size=size[0], norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, **sizes
            )
        model.neck = nn.Identity()
        fuse_attention(model.blocks)
        eps, width = first_eps(model.blocks[0]), sizes["embed_dim"]
        return SegmentAnythingTower(model, width=width, depth=len(model.blocks), patch=16, layer_norm_eps=eps)

    def rename(self, state: State) -> State:
        """The `image_encoder.` part of a whole SAM, or a file that holds the encoder alone."""
        prefix = "image_encoder."
        encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return {key: value for key, value in (encoder or state).items() if not key.startswith("neck.")}


def segment_anything_blueprint(recipe: TeacherRecipe, image_size: Size) -> SegmentAnythingBlueprint:
    """The blueprint of `segment_anything/<vit_b|vit_l|vit_h>`; UsageError for another name."""
    if recipe.architecture not in SIZES:
        known = nearest(recipe.architecture, SIZES)
        raise UsageError(f"{recipe.model}: segment_anything has no model {recipe.architecture!r}{known}")
    return SegmentAnythingBlueprint(
        recipe=recipe,
        image_size=image_size,
        native_size=(NATIVE_SIDE, NATIVE_SIDE),
        input_size=recipe.input_size or (NATIVE_SIDE, NATIVE_SIDE),
        normalization=IMAGENET,
        licence="apache-2.0",
        square=True,
        source=UrlFile(SAM_URLS[recipe.architecture]),
    )
