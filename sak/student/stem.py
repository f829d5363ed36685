"""The Teacher-Agnostic Stem (TAS, equation 1): a plain ViT that hands out the tokens after every block."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sak.student.position import resampled
from sak.student.sizes import PATCH, Size, StemSize, plain_vit
from sak.student.swin import SwinStem
from sak.student.swin_size import SwinSize


class Stem(nn.Module):
    """A timm ViT with class token and LayerNorm eps 1e-6; its final norm is neither used nor there.

    It takes images of one size, or of any multiple of the patch once `any_size` is set: the position embedding is then
    resampled for every batch, as `resample_position` does.
    """

    def __init__(self, size: StemSize, image_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.vit = plain_vit(size, image_size)
        self.gradient_checkpointing = gradient_checkpointing
        self.any_size = False

    @property
    def model(self) -> nn.Module:
        """The timm model that weights are for."""
        return self.vit

    def index(self, level: int) -> int:
        """Which of `forward`'s tokens are those of a level."""
        return level

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Z_0 (patch and position embedding) and Z_1 to Z_L (after each block): (B, 3, H, W) -> L+1 x (B, P+n, C).

        P is 1, the class token, and the registers' number where there are any.
        """
        tokens = [self._embed(images)]
        for block in self.vit.blocks:
            tokens.append(self._run(block, tokens[-1]))
        return tuple(tokens)

    def accept_any_size(self) -> None:
        """Take images of any size in multiples of the patch."""
        self.any_size = True
        self.vit.patch_embed.strict_img_size = False

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.vit.patch_embed(images)
        special = [self.vit.cls_token, *([self.vit.reg_token] if self.vit.num_reg_tokens else [])]
        before = [token.expand(patches.shape[0], -1, -1) for token in special]
        position = self._position(images)
        if self.vit.no_embed_class:
            return torch.cat((*before, patches + position), dim=1)
        return torch.cat((*before, patches), dim=1) + position

    def _position(self, images: Tensor) -> Tensor:
        if not self.any_size:
            return self.vit.pos_embed
        grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        prefix = 0 if self.vit.no_embed_class else 1
        return resampled(self.vit.pos_embed, grid, self.vit.patch_embed.grid_size, prefix)

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)


def make_stem(size: Size, image_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> Stem | SwinStem:
    """The stem of a size, a ViT or a Swin."""
    kind = SwinStem if isinstance(size, SwinSize) else Stem
    return kind(size, image_size, gradient_checkpointing=gradient_checkpointing)  # type: ignore[arg-type]
