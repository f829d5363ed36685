"""The Teacher-Agnostic Stem (TAS, equation 1): a plain ViT that hands out the tokens after every block; its weights."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from sak.errors import SakError, UsageError, demo_weights
from sak.student.adapter_path import run_block
from sak.student.sizes import PATCH, AnyStemSize, StemSize, plain_vit
from sak.variants.foreign import THEIA, renamed, theia_file
from sak.variants.lora import LORA_KEYS
from sak.variants.swin import SwinStem
from sak.weight_files import read_tensors


def resample_position(
    embedding: Tensor, grid: tuple[int, int], *, source: tuple[int, int] | None = None, prefix: int = 1
) -> Tensor:
    """(1, prefix+n, C) -> (1, prefix+H*W, C) for `grid` (H, W): bicubic, no antialias, the prefix rows kept.

    Without `source` this is the published code: the source grid is taken as square, and an embedding with the right
    number of tokens is left alone whatever its shape. Where the source grid is known it is used, and whenever it
    differs from the target the embedding is resampled; for square sources of another size the two agree.
    """
    count = embedding.shape[1] - prefix
    if source is None:
        if count == grid[0] * grid[1]:
            return embedding
        source = (round(count**0.5),) * 2
        if source[0] ** 2 != count:
            raise SakError(f"a position embedding of {count} patches is no square grid; give the image size it is for")
    if source == grid:
        return embedding
    return resampled(embedding, grid, source, prefix)


def resampled(embedding: Tensor, grid: tuple[int, int], source: tuple[int, int], prefix: int) -> Tensor:
    """As `resample_position`, whether or not the grids differ; where they do not, the values stay as they are."""
    patches = embedding[:, prefix:].transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat((embedding[:, :prefix], resized.flatten(2).transpose(1, 2)), dim=1)


class Stem(nn.Module):
    """A timm ViT with class token and LayerNorm eps 1e-6; its final norm is neither used nor there.

    It takes images of one size, or of any multiple of the patch once `any_size` is set: the position embedding is then
    resampled for every batch, as `resample_position` does.
    """

    def __init__(self, size: StemSize, image_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.vit = plain_vit(size, image_size)
        self.size, self.image_size = size, image_size
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
            tokens.append(run_block(self, block, tokens[-1]))
        return tuple(tokens)

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether images of this (height, width) may come."""
        return all(side % PATCH == 0 for side in size) if self.any_size else size == self.image_size

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
        return resampled(self.vit.pos_embed, grid, self.vit.patch_embed.grid_size, position_prefix(self.size))


DEMO = "demo/"
"""What the names of the weights begin with that `pipeline.demo` ships: `demo/stem`."""

_UNUSED = ("norm.", "fc_norm.", "head.")


def load_stem_weights(stem: Stem | SwinStem, name: str | AnyStemSize, weights: str) -> None:
    """Fill the stem from `pretrained`, `demo/stem` or a file; `SakError` where they are missing or do not fit.

    The position embedding is resampled bicubically with antialias where the stem has another grid, as timm does.
    """
    if weights == "checkpoint":
        raise UsageError("this student came from a checkpoint and starts nowhere else: load it, or name other weights")
    if weights == "pretrained" and name in THEIA:
        file = theia_file(str(name))
        _fill(stem, read_tensors(file), source=str(file))
    elif weights.startswith(DEMO):
        file = demo_weights(weights.removeprefix(DEMO)).fetch(weights)
        _fill(stem, {key: tensor.float() for key, tensor in read_tensors(file).items()}, source=weights)
    elif weights == "pretrained":
        _fill(stem, _pretrained(name), source=f"pretrained {name}")
    else:
        _fill(stem, read_tensors(Path(weights)), source=weights)


def _pretrained(name: str | AnyStemSize) -> dict[str, Tensor]:
    if not isinstance(name, str):
        raise UsageError(f"there are no pretrained weights for {name}; name a timm stem, a file, or random:SEED")
    if "." not in name:
        raise UsageError(f"stem {name!r}: spell out the weights' tag, as in {name}.augreg_in21k_ft_in1k")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:  # the hub's errors for no network, no such file and offline mode are all of this kind
        raise SakError(
            f"weights of {name} are neither in the Hugging Face cache nor to be had ({str(error).splitlines()[0]}); "
            "fetch them once with a network, give a file, or random:SEED"
        ) from error
    except RuntimeError as error:
        raise UsageError(f"stem {name!r}: {str(error).splitlines()[0]}") from error
    return model.state_dict()


def _fill(stem: Stem | SwinStem, state: Mapping[str, Tensor], *, source: str) -> None:
    own = {key: tensor for key, tensor in stem.model.state_dict().items() if not key.endswith(LORA_KEYS)}
    given = {key: tensor for key, tensor in renamed(state).items() if not key.startswith(_UNUSED)}
    differing = sorted(set(own) ^ set(given))
    if differing:
        raise SakError(f"{source}: keys do not fit the stem, such as {', '.join(differing[:3])}; is it another model?")
    if isinstance(stem, Stem):
        given["pos_embed"] = _resampled(given["pos_embed"], stem, source)
    for key, tensor in given.items():
        if tensor.shape != own[key].shape:
            raise SakError(f"{source}: {key} is {tuple(tensor.shape)}, the stem needs {tuple(own[key].shape)}")
    stem.model.load_state_dict(given, strict=False)  # LoRA's updates stay as they are; all else was checked


def _resampled(pos_embed: Tensor, stem: Stem, source: str) -> Tensor:
    prefix = position_prefix(stem.size)
    count = pos_embed.shape[1] - prefix
    if count == stem.vit.pos_embed.shape[1] - prefix:
        return pos_embed
    side = round(count**0.5)
    if side * side != count:
        raise SakError(f"{source}: pos_embed has {count} patches, no square grid, so it cannot be resampled")
    return resample_abs_pos_embed(pos_embed, list(stem.vit.patch_embed.grid_size), num_prefix_tokens=prefix)


def position_prefix(size: AnyStemSize) -> int:
    """Rows of a stem's position embedding that belong to no patch."""
    return int(isinstance(size, StemSize) and size.class_position)
