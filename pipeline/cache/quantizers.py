"""How a token becomes bytes and comes back: 16-bit floats, int8, or int4 after a rotation, the integers with scales.

`QUANTIZERS` has them by name. A quantizer sees values that are standardised already where that matters. Each stores
`values` and, for the integers, a float16 `scales` per token. Absent samples read as each array's fill, which decodes to
NaN.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import shake_256
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.cache.stores.base import ArrayLayout
from sak.losses.standardise import hadamard, orthonormal_hadamard

_BFLOAT16_NAN = 0x7FC0
_TINY = torch.finfo(torch.float32).tiny
_CUBIC = 2 / 127**2
_SCALE_FACTORS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
_BIN, _MARGIN = 0.8, 0.05  # of the smallest distance between edges: a bin and both its margins hold at most one edge


class Quantizer(nn.Module):
    """Values (B, N, C) float32 to named arrays of leading dimension B, and back; made for `channels` = C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def arrays(self, tokens: int) -> tuple[ArrayLayout, ...]:
        """What is stored of one sample of (tokens, channels): `values` and, for the integers, `scales`."""
        raise NotImplementedError

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(B, N, C) float32 to the arrays; a value that does not fit becomes infinite there, for the caller to see."""
        raise NotImplementedError

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """The arrays to (B, N, C) float32."""
        raise NotImplementedError


class Float16(Quantizer):
    """IEEE half precision: 11 bits of mantissa, at most 65,504."""

    def arrays(self, tokens: int) -> tuple[ArrayLayout, ...]:
        """What is stored of one sample."""
        return (ArrayLayout("values", "float16", (tokens, self.channels), math.nan),)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(B, N, C) float32 to the arrays."""
        return {"values": values.half().contiguous()}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """The arrays to (B, N, C) float32."""
        return arrays["values"].float()


class BFloat16(Quantizer):
    """The upper half of a float32: 8 bits of mantissa, its whole range; stored as uint16, which numpy has."""

    def arrays(self, tokens: int) -> tuple[ArrayLayout, ...]:
        """What is stored of one sample."""
        return (ArrayLayout("values", "uint16", (tokens, self.channels), _BFLOAT16_NAN),)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(B, N, C) float32 to the arrays."""
        return {"values": values.bfloat16().contiguous().view(torch.uint16)}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """The arrays to (B, N, C) float32."""
        return arrays["values"].view(torch.bfloat16).float()


class Int8(Quantizer):
    """255 levels, cubically spaced up to each token's largest value: decoded = scale * q * (1 + 2 (q / 127)^2).

    Steps are 2.3 times finer in the middle than they would be on average, and wider at the ends, where few values lie.
    On Gaussian tokens that gives a relative error of 0.0068 where even steps give 0.0077; on tokens with a few huge
    entries 0.008 where they give 0.013. Nothing is clipped.

    The scale is rounded up to float16 before values are compared with it, so its own rounding costs no accuracy: half
    the bytes of float32 scales at the same error.
    """

    levels: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        steps = torch.arange(-127, 128, dtype=torch.float64)
        self.register_buffer("levels", (steps * (1 + _CUBIC * steps.square())).float(), persistent=False)
        self.nearest = NearestLevel(self.levels)

    def arrays(self, tokens: int) -> tuple[ArrayLayout, ...]:
        """What is stored of one sample."""
        return ArrayLayout("values", "int8", (tokens, self.channels), 0), _scales(tokens)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(B, N, C) float32 to the arrays."""
        scales = _round_up(values.abs().amax(-1) / self.levels[-1])
        codes = self.nearest(_in_scale(values, scales.float())).sub_(127)
        return {"values": codes.to(torch.int8), "scales": scales}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """The arrays to (B, N, C) float32."""
        steps = arrays["values"].float()
        return torch.addcmul(steps, steps.square(), steps, value=_CUBIC) * arrays["scales"].float()[..., None]


class Int4(Quantizer):
    """A rotation that makes channels alike, a scale per token, and the 16 levels that are best for a Gaussian.

    Two channels to a byte, the even one in the low half. Of seven scales around the token's root mean square the one is
    taken whose levels, at their least-squares scale, come nearest: relative error 0.0955 on Gaussian tokens of 768
    channels, where theory's scale gives 0.0975, and at most 0.10 on others.
    """

    levels: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.rotation = Rotation(channels)
        self.register_buffer("levels", gaussian_levels().clone(), persistent=False)
        self.nearest = NearestLevel(self.levels)

    def arrays(self, tokens: int) -> tuple[ArrayLayout, ...]:
        """What is stored of one sample."""
        return ArrayLayout("values", "uint8", (tokens, (self.channels + 1) // 2), 0), _scales(tokens)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """(B, N, C) float32 to the arrays."""
        rotated = self.rotation(values)
        scales = self._best_scales(rotated).half()
        return {"values": _pack(self.nearest(_in_scale(rotated, scales.float()))), "scales": scales}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """The arrays to (B, N, C) float32."""
        packed = arrays["values"]
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., : self.channels]
        rotated = self._levels_of(codes.int()) * arrays["scales"].float()[..., None]
        return self.rotation.inverse(rotated)

    def _levels_of(self, codes: Tensor) -> Tensor:
        return self.levels.index_select(0, codes.flatten()).view(codes.shape)

    def _best_scales(self, rotated: Tensor) -> Tensor:
        """(B, N, C) to (B, N): |r - s c|^2 is least at s = <r, c> / |c|^2, where it is |r|^2 - <r, c>^2 / |c|^2."""
        root_mean_square = rotated.square().mean(-1).sqrt()
        best, least = root_mean_square, torch.full_like(root_mean_square, -1.0)
        for factor in _SCALE_FACTORS:
            chosen = self._levels_of(self.nearest(_in_scale(rotated, root_mean_square * factor)))
            product, energy = (rotated * chosen).sum(-1), chosen.square().sum(-1)
            explained = product.square() / energy
            best = torch.where(explained > least, product / energy, best)
            least = torch.maximum(explained, least)
        return best


QUANTIZERS: dict[str, type[Quantizer]] = {"float16": Float16, "bfloat16": BFloat16, "int8": Int8, "int4": Int4}


class NearestLevel(nn.Module):
    """Numbers the level nearest to a value, `torch.bucketize` at the middles between levels; 8 to 14 times faster.

    The table says for each bin of a fine even grid how many edges lie below it; comparing with the one edge that may
    lie in the bin settles the rest. A bin's margins are wider than what rounding can misplace a value by.
    """

    edges: Tensor
    table: Tensor

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        edges = (levels[1:] + levels[:-1]) / 2
        gap = float(edges.diff().min())
        self._first = float(edges[0]) - gap
        self._bins_per_unit = 1 / (_BIN * gap)
        bins = math.ceil((float(edges[-1]) + gap - self._first) * self._bins_per_unit)
        starts = torch.arange(bins, dtype=torch.float64) / self._bins_per_unit + self._first - _MARGIN * gap
        self.register_buffer("edges", torch.cat([edges, edges.new_tensor([math.inf])]), persistent=False)
        self.register_buffer("table", torch.bucketize(starts, edges.double(), out_int32=True), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Float32 values of any shape to int32 of the same; NaN becomes some level."""
        flat = values.flatten()
        last = len(self.table) - 1
        bins = flat.sub(self._first).mul_(self._bins_per_unit).clamp_(0, last).int().clamp_(0, last)  # NaN is no int
        below = self.table.index_select(0, bins)
        return below.add_(flat > self.edges.index_select(0, below)).view(values.shape)


class Rotation(nn.Module):
    """An orthonormal map of `width` channels that spreads each over all others: four bits then meet near-Gaussians.

    It is signs, then the Kronecker product of `left` (a, a) and `right` (b, b), a * b the width, applied as two small
    products, never as a (width, width) one. The signs are fixed +-1, a hash of the width: without them a token
    whose channels are all alike would become a single spike.

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


@lru_cache(maxsize=1)
def gaussian_levels() -> Tensor:
    """The 16 levels of least squared error for a standard Gaussian (Lloyd-Max), increasing, float32 (16,).

    Mean squared error 0.009497, so relative error 0.0975. Rounded to six digits: they decide bytes, and libraries of
    mathematics differ in the last.
    """
    levels = [(2 * number + 1) / 8 for number in range(8)]
    for _ in range(2000):
        edges = [0.0, *((low + high) / 2 for low, high in pairwise(levels)), math.inf]
        levels = [_gaussian_mean(low, high) for low, high in pairwise(edges)]
    upper = [round(level, 6) for level in levels]
    return torch.tensor([*(-level for level in reversed(upper)), *upper])


def _gaussian_mean(low: float, high: float) -> float:
    """The mean of a standard Gaussian between `low` and `high`."""
    density = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
    return density / ((math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2)


def _scales(tokens: int) -> ArrayLayout:
    return ArrayLayout("scales", "float16", (tokens,), math.nan)


def _round_up(scales: Tensor) -> Tensor:
    """Non-negative float32 to the least float16 that is not smaller; infinite beyond 65,504."""
    down = scales.half()
    bits = down.view(torch.int16) + (down.float() < scales).to(torch.int16)
    return bits.view(torch.float16)


def _in_scale(values: Tensor, scales: Tensor) -> Tensor:
    """Values (B, N, C) in units of their token's scale (B, N)."""
    return values / scales.clamp(min=_TINY)[..., None]


def _pack(codes: Tensor) -> Tensor:
    """Codes 0..15 (..., C) to bytes (..., ceil(C / 2)), the even channel in the low half."""
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, codes.shape[-1] % 2))
    return padded[..., 0::2] | (padded[..., 1::2] << 4)
