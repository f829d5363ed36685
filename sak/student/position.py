"""Position embeddings moved to another grid, as stage-1 weights enter stage 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.errors import SakError


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
