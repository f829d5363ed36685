"""How well stored features stand for those that were encoded; each block of a column records it as it is written.

The relative error is taken in the channel-standardised space, pooled over samples: sqrt(sum |decoded - x|^2 / sum
|x|^2) of x = (features - mean) / std. Cosine alone hides damage: a few huge channels make it. What the reduction to
the stored grid left out is not part of either; it stands beside them as the left-over share.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cache.calibration import LevelStatistics
from pipeline.cache.reduction import Reduced
from sak.features import map_to_tokens

_MERGED_BY: dict[str, Callable[[float, float], float]] = {
    "cosine_min": min,
    "token_norm_max": max,
    "deviation_max": max,
}


@dataclass(frozen=True)
class LevelFidelity:
    """Float64 sums over samples of one level; `a + b` merges blocks. The properties say what they mean.

    Attributes:
        samples, tokens: how many went in.
        cosine_sum, cosine_min: of the whole flattened map, in the features' own space.
        token_cosine_sum: of every token.
        dot, energy, decoded_energy, error: <x, y>, |x|^2, |y|^2, |x - y|^2 of standardised features x, decoded y.
        token_norm_sum, token_norm_max: Euclidean norms of the tokens that were encoded.
        deviation_max: the largest |x|, in standard deviations: how far outliers go.
        leftover_sum, teacher_energy: |t - Up|^2 and |t|^2 of the teacher's maps.
    """

    samples: int = 0
    tokens: int = 0
    cosine_sum: float = 0.0
    cosine_min: float = 1.0
    token_cosine_sum: float = 0.0
    dot: float = 0.0
    energy: float = 0.0
    decoded_energy: float = 0.0
    error: float = 0.0
    token_norm_sum: float = 0.0
    token_norm_max: float = 0.0
    deviation_max: float = 0.0
    leftover_sum: float = 0.0
    teacher_energy: float = 0.0

    def __add__(self, other: "LevelFidelity") -> "LevelFidelity":
        """The record of both blocks."""
        merged: dict[str, float | int] = {}
        for name, mine in asdict(self).items():
            merged[name] = _MERGED_BY.get(name, operator.add)(mine, getattr(other, name))
        return LevelFidelity.from_json(merged)

    @property
    def cosine(self) -> float:
        """Mean map cosine of decoded and encoded features, as the distillation loss takes it."""
        return _share(self.cosine_sum, self.samples)

    @property
    def token_cosine(self) -> float:
        """Mean cosine of tokens."""
        return _share(self.token_cosine_sum, self.tokens)

    @property
    def standardised_cosine(self) -> float:
        """Cosine over everything in the standardised space."""
        return _share(self.dot, math.sqrt(self.energy * self.decoded_energy))

    @property
    def relative_error(self) -> float:
        """Relative error in the standardised space."""
        return math.sqrt(_share(self.error, self.energy))

    @property
    def leftover_share(self) -> float:
        """The share of the teacher maps' energy that the stored grid cannot hold; 0 where nothing was projected."""
        return _share(self.leftover_sum, self.teacher_energy)

    @property
    def token_norm(self) -> float:
        """Mean norm of the tokens."""
        return _share(self.token_norm_sum, self.tokens)

    def to_json(self) -> dict[str, float | int]:
        """The sums, for a block's record; `summary` is for people."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, float | int]) -> "LevelFidelity":
        """Read what `to_json` gave; ValueError names sums that are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if record.keys() != names:
            raise ValueError(f"a fidelity record holds {sorted(names)}, these differ: {sorted(record.keys() ^ names)}")
        return cls(**record)  # type: ignore[arg-type] # counts are ints, sums floats

    def summary(self) -> dict[str, float | int]:
        """What `cache stats` shows."""
        names = ("cosine", "token_cosine", "standardised_cosine", "relative_error", "leftover_share", "token_norm")
        shown = {name: float(getattr(self, name)) for name in names}
        extremes = {name: getattr(self, name) for name in ("cosine_min", "token_norm_max", "deviation_max")}
        return {"samples": self.samples, **shown, **extremes}


@torch.no_grad()
def measure(reduced: Reduced, decoded: Tensor, statistics: LevelStatistics) -> LevelFidelity:
    """The fidelity of one batch: what was encoded against what decoding gives, both (B, C, h, w).

    Sums are float64. Waits for the device once.
    """
    encoded = map_to_tokens(reduced.map).float()
    again = map_to_tokens(decoded).float()
    mean, scale = (each.float().to(encoded.device) for each in (statistics.mean, statistics.scale))
    standard, standard_again = (encoded - mean) / scale, (again - mean) / scale
    cosine = _cosine(encoded.flatten(1), again.flatten(1))
    norms = encoded.norm(dim=-1)
    leftover = reduced.leftover if reduced.leftover is not None else torch.zeros_like(reduced.energy)
    values = torch.stack(
        [
            cosine.sum(),
            cosine.min(),
            F.cosine_similarity(encoded, again, dim=-1).sum(dtype=torch.float64),
            _dot(standard, standard_again),
            _dot(standard, standard),
            _dot(standard_again, standard_again),
            (standard - standard_again).square().sum(dtype=torch.float64),
            norms.sum(dtype=torch.float64),
            norms.max().double(),
            standard.abs().max().double(),
            leftover.sum(dtype=torch.float64),
            reduced.energy.sum(),
        ]
    ).tolist()
    return LevelFidelity(encoded.shape[0], encoded.shape[0] * encoded.shape[1], *values)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows, float64 (B,): near 1 float32 sums would round it to 1."""
    dots = [(x * y).sum(-1, dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b))]
    return dots[0] / (dots[1] * dots[2]).sqrt().clamp(min=torch.finfo(torch.float64).tiny)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
