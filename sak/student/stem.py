"""The Teacher-Agnostic Stem (TAS, equation 1): a plain ViT that hands out the tokens after every block."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sak.student.sizes import StemSize, plain_vit


class Stem(nn.Module):
    """A timm ViT with class token and LayerNorm eps 1e-6; its final norm is neither used nor there."""

    def __init__(self, size: StemSize, image_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.vit = plain_vit(size, image_size)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Z_0 (patch and position embedding) and Z_1 to Z_L (after each block): (B, 3, H, W) -> L+1 x (B, 1+n, C)."""
        patches = self.vit.patch_embed(images)
        class_token = self.vit.cls_token.expand(len(patches), -1, -1)
        tokens = [torch.cat((class_token, patches), dim=1) + self.vit.pos_embed]
        for block in self.vit.blocks:
            tokens.append(self._run(block, tokens[-1]))
        return tuple(tokens)

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)
