"""Teachers from segment_anything: the image encoder of SAM, without neck, prompt encoder and mask decoder."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.teachers.hub import SAM_URLS, PublishedFile, UrlFile
from sak.teachers.positions import fuse_attention, grid_tensors, resample_sam
from sak.teachers.preprocess import IMAGENET
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.teacher import Blueprint, Tower, first_eps
from sak.teachers.weights import State

OVERRIDES = ("embed_dim", "depth", "num_heads", "window_size")
NATIVE_SIDE = 1024


@dataclass(frozen=True)
class EncoderSize:
    """What the library's builder gives one encoder; `whole` are the blocks with global attention, from 0."""

    embed_dim: int
    depth: int
    num_heads: int
    whole: tuple[int, ...]
    url: str


SIZES = {
    "vit_b": EncoderSize(768, 12, 12, (2, 5, 8, 11), SAM_URLS["vit_b"]),
    "vit_l": EncoderSize(1024, 24, 16, (5, 11, 17, 23), SAM_URLS["vit_l"]),
    "vit_h": EncoderSize(1280, 32, 16, (7, 15, 23, 31), SAM_URLS["vit_h"]),
}


class SegmentAnythingTower(Tower):
    """segment_anything's ImageEncoderViT, block by block: it returns nothing but the neck's output by itself."""

    model: Any

    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """See Tower."""
        tokens = self.model.patch_embed(images) + self.model.pos_embed
        taps = []
        for number, block in enumerate(self.model.blocks, start=1):
            tokens = block(tokens)
            if number in levels:
                taps.append(tokens.permute(0, 3, 1, 2).contiguous())
        return taps

    def keep_blocks(self, count: int) -> None:
        """See Tower."""
        self.model.blocks = self.model.blocks[:count]


@dataclass(frozen=True, kw_only=True)
class SegmentAnythingBlueprint(Blueprint):
    """One of the three encoders; the library builds them at 1024 alone, so the encoder is drawn from its parts."""

    encoder: EncoderSize

    def draw(self, size: Size) -> SegmentAnythingTower:
        """See Blueprint; the arguments are those of the library's `build_sam`, LayerNorm epsilon 1e-6 among them."""
        overrides = self.recipe.overrides
        width = overrides.get("embed_dim", self.encoder.embed_dim)
        with torch.device("meta"):
            model = ImageEncoderViT(
                img_size=size[0],
                embed_dim=width,
                depth=overrides.get("depth", self.encoder.depth),
                num_heads=overrides.get("num_heads", self.encoder.num_heads),
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=overrides.get("window_size", 14),
                global_attn_indexes=self.encoder.whole,
            )
        model.neck = nn.Identity()
        fuse_attention(model.blocks)
        eps = first_eps(model.blocks[0])
        return SegmentAnythingTower(model, width=width, depth=len(model.blocks), patch=16, layer_norm_eps=eps)

    def published(self) -> PublishedFile:
        """See Blueprint."""
        return UrlFile(self.encoder.url)

    def rename(self, state: State) -> State:
        """The `image_encoder.` part of a whole SAM, or a file that holds the encoder alone."""
        prefix = "image_encoder."
        encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return {key: value for key, value in (encoder or state).items() if not key.startswith("neck.")}

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """See Blueprint."""
        return grid_tensors(tower)

    def resample(self, state: State, tower: Tower) -> State:
        """See Blueprint."""
        return resample_sam(state, tower)


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
        encoder=SIZES[recipe.architecture],
    )
