"""Rotations that spread every channel over all others, so that four bits meet something close to a Gaussian.

Hadamard matrices of order 2^k (Sylvester), q + 1 (Paley's first construction, q prime, q = 3 mod 4) and 2 (q + 1)
(his second, q prime, q = 1 mod 4), and their Kronecker products.
"""

from hashlib import shake_256

import torch
from torch import Tensor, nn


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


def hadamard(order: int) -> Tensor | None:
    """An orthogonal matrix of +-1, float64 (order, order), by the constructions above; None where none applies."""
    if order & (order - 1) == 0:
        return _sylvester(order)
    if order % 4:
        return None
    if _is_prime(order - 1):
        return _paley_first(order - 1)
    q = order // 2 - 1
    return _paley_second(q) if q % 4 == 1 and _is_prime(q) else None


def _signs(width: int) -> Tensor:
    """(width,) of +-1, float32; from a hash, not a generator whose stream a release of torch could change."""
    noise = shake_256(f"sak rotation {width}".encode()).digest(width)
    return torch.tensor([1.0 if byte & 1 else -1.0 for byte in noise])


def _powers(width: int) -> tuple[Tensor, Tensor]:
    """Two factors of a power of two, as near to each other as can be, scaled to be orthonormal."""
    small = 1 << (width.bit_length() - 1) // 2
    return _orthonormal(_sylvester(small)), _orthonormal(_sylvester(width // small))


def _with_odd_part(odd: int, power: int) -> tuple[Tensor, Tensor]:
    """(H of order odd * 4, or a cosine transform, Sylvester's of what is left)."""
    base = hadamard(4 * odd) if power >= 4 else None
    if base is None:
        return _cosine_transform(odd), _orthonormal(_sylvester(power))
    return _orthonormal(base), _orthonormal(_sylvester(power // 4))


def _orthonormal(matrix: Tensor) -> Tensor:
    return matrix / matrix.shape[0] ** 0.5


def _sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _paley_first(q: int) -> Tensor:
    """Order q + 1, q = 3 mod 4: I + S with S skew."""
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
    return skew + torch.eye(q + 1, dtype=torch.float64)


def _paley_second(q: int) -> Tensor:
    """Order 2 (q + 1), q = 1 mod 4: a symmetric conference matrix with 2 x 2 blocks in place of its entries."""
    conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
    off = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, off) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)


def _jacobsthal(q: int) -> Tensor:
    """(q, q): 1 where row - column is a square modulo the prime q, -1 where it is none, 0 on the diagonal."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    numbers = torch.arange(q)
    return character[(numbers[:, None] - numbers[None, :]) % q]


def _cosine_transform(size: int) -> Tensor:
    """Orthonormal DCT-II, float64 (size, size)."""
    numbers = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (numbers[None, :] + 0.5) * numbers[:, None]) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
