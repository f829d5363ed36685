"""Rotations that spread every channel over all others, so that four bits meet something close to a Gaussian."""

from hashlib import shake_256

import torch
from torch import Tensor, nn

from sak.losses.standardise import hadamard, orthonormal_hadamard


class Rotation(nn.Module):
    """An orthonormal map of `width` channels: signs, then the Kronecker product of `left` (a, a) and `right` (b, b).

    a * b is the width; applied as two small products, never as a (width, width) one. The signs are fixed +-1, a hash of
    the width: without them a token whose channels are all alike would become a single spike.

    768 is H12 x H64, 384 H12 x H32, 1024 H32 x H32 (Sylvester's), 1280 H20 x H64, 1152 H36 x H32, 1408 H44 x H32, 48
    H12 x H4. Widths whose odd part has no Hadamard matrix here (50, 100, 257, ...) take their largest power of two
    times the discrete cosine transform of the rest, as flat as a Hadamard matrix up to a factor of sqrt(2).
    """

    left: Tensor
    right: Tensor
    signs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"a rotation needs at least one channel, got {width}")
        power = width & -width
        left, right = _powers(width) if power == width else _with_odd_part(width // power, power)
        self.register_buffer("left", left.float().contiguous(), persistent=False)
        self.register_buffer("right", right.float().contiguous(), persistent=False)
        self.register_buffer("signs", _signs(width), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Rotate the last dimension: (..., width) -> (..., width)."""
        folded = (values * self.signs).unflatten(-1, (self.left.shape[0], self.right.shape[0]))
        return (self.left @ (folded @ self.right.T)).flatten(-2)

    def inverse(self, values: Tensor) -> Tensor:
        """Undo `forward`: (..., width) -> (..., width)."""
        folded = values.unflatten(-1, (self.left.shape[0], self.right.shape[0]))
        return (self.left.T @ (folded @ self.right)).flatten(-2) * self.signs


def _signs(width: int) -> Tensor:
    """(width,) of +-1, float32; from a hash, not a generator whose stream a release of torch could change."""
    noise = shake_256(f"sak rotation {width}".encode()).digest(width)
    return torch.tensor([1.0 if byte & 1 else -1.0 for byte in noise])


def _powers(width: int) -> tuple[Tensor, Tensor]:
    """Two orthonormal factors of a power of two, as near to each other as can be."""
    small = 1 << (width.bit_length() - 1) // 2
    return orthonormal_hadamard(small), orthonormal_hadamard(width // small)


def _with_odd_part(odd: int, power: int) -> tuple[Tensor, Tensor]:
    """(H of order odd * 4, or a cosine transform, Sylvester's of what is left)."""
    if power < 4 or hadamard(4 * odd) is None:
        return _cosine_transform(odd), orthonormal_hadamard(power)
    return orthonormal_hadamard(4 * odd), orthonormal_hadamard(power // 4)


def _cosine_transform(size: int) -> Tensor:
    """Orthonormal DCT-II, float64 (size, size)."""
    numbers = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (numbers[None, :] + 0.5) * numbers[:, None]) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix
