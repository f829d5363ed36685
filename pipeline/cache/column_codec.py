"""All levels of one column: teacher maps to stored arrays, stored arrays to what the losses compare with, and how well.

`LevelFidelity` says how well stored features stand for those that were encoded; a block's record keeps it.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.cache.calibration import Calibration, LevelStatistics
from pipeline.cache.level_codec import LevelCodec, level_layout
from pipeline.cache.manifest import Manifest
from pipeline.cache.projection import Reduced, Reduction
from pipeline.cache.spec import EncodingSpec
from pipeline.cache.stores.base import ArrayLayout, ColumnLayout
from sak.features import FeatureMaps, map_to_tokens
from sak.losses.projection import Grid, ProjectedTarget, TargetMaps, Targets

_MERGED_BY = {"cosine_min": min, "token_norm_max": max, "deviation_max": max}


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
        return LevelFidelity(
            **{
                name: _MERGED_BY.get(name, operator.add)(mine, getattr(other, name))
                for name, mine in vars(self).items()
            }
        )

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

    All follows from x and the difference y - x, in float32 over a token's channels and float64 from there: a cosine
    near 1, taken from |x|^2, <x, y - x> and |y - x|^2, loses nothing to their rounding. Waits for the device once.
    """
    encoded = map_to_tokens(reduced.map).float()
    change = map_to_tokens(decoded).float() - encoded
    mean, inverse = (values.float().to(encoded.device) for values in (statistics.mean, 1 / statistics.scale))
    plain = _Products.of(encoded, change)
    token_cosine, norms = plain.cosine(), plain.energy.sqrt()
    cosine = plain.over_tokens().cosine()
    standard = (encoded - mean).mul_(inverse)
    standardised = _Products.of(standard, change.mul_(inverse)).over_tokens()
    leftover = reduced.leftover if reduced.leftover is not None else torch.zeros_like(reduced.energy)
    values = torch.stack(
        [
            cosine.sum(),
            cosine.min(),
            token_cosine.sum(),
            (standardised.energy + standardised.change).sum(),
            standardised.energy.sum(),
            standardised.decoded_energy.sum(),
            standardised.error.sum(),
            norms.sum(),
            norms.max(),
            standard.abs_().amax().double(),
            leftover.sum(dtype=torch.float64),
            reduced.energy.sum(),
        ]
    ).tolist()
    return LevelFidelity(encoded.shape[0], encoded.shape[0] * encoded.shape[1], *values)


@dataclass(frozen=True)
class _Products:
    """|x|^2, <x, d> and |d|^2 of x and d = y - x, float64 (B, N) by token, or (B,) by map."""

    energy: Tensor
    change: Tensor
    error: Tensor

    @classmethod
    def of(cls, x: Tensor, d: Tensor) -> "_Products":
        """Of every token of x and d, float32 (B, N, C)."""
        pairs = ((x, x), (x, d), (d, d))
        return cls(*(torch.linalg.vecdot(one, other).double() for one, other in pairs))

    def over_tokens(self) -> "_Products":
        """Of whole maps."""
        return _Products(self.energy.sum(1), self.change.sum(1), self.error.sum(1))

    @property
    def decoded_energy(self) -> Tensor:
        """|y|^2."""
        return (self.energy + 2 * self.change + self.error).clamp(min=0)

    def cosine(self) -> Tensor:
        """The cosine of x and y; 0 where either is zero."""
        norms = (self.energy * self.decoded_energy).sqrt()
        return (self.energy + self.change) / norms.clamp(min=torch.finfo(torch.float64).tiny)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Encoded:
    """A batch as the store takes it, arrays of leading dimension B on the device, and what the encoding kept of it."""

    arrays: dict[str, Tensor]
    fidelity: dict[int, LevelFidelity]


def reduction_of(document: Mapping[str, Any], grid: Grid) -> Reduction:
    """The reduction that a key's document asks for, of a teacher whose own grid is `grid`."""
    student = document["grid"]["student"]
    return Reduction(document["grid"]["kind"], grid, (student[0], student[1]) if student else grid)


def column_layout(
    document: Mapping[str, Any], *, width: int, grid: Grid, samples: int, block: int, codec: str = "none"
) -> ColumnLayout:
    """How the column of a key's document lies: the arrays of every level, and the left-over of what is projected.

    `width` and `grid` are those of the teacher's own maps.
    """
    encoding, reduction = EncodingSpec(**document["encoding"]), reduction_of(document, grid)
    arrays: list[ArrayLayout] = []
    for level in document["levels"]:
        arrays += level_layout(encoding, level, width, reduction.stored_grid)
        if reduction.has_leftover:
            arrays.append(ArrayLayout(_leftover(level), "float32", (), float("nan")))
    return ColumnLayout(tuple(arrays), samples, block, codec)


def level_arrays(layout: ColumnLayout, levels: Sequence[int]) -> tuple[str, ...]:
    """Names of the arrays that hold `levels`."""
    wanted = {f"l{level}" for level in levels}
    return tuple(array.name for array in layout.arrays if array.name.partition("/")[0] in wanted)


class ColumnCodec(nn.Module):
    """The codecs of a column's levels under one calibration; move it to a device as any module.

    `calibration` may be None for encodings that need none (float16 and bfloat16 without PCA), to decode alone.
    """

    def __init__(self, manifest: Manifest, calibration: Calibration | None) -> None:
        super().__init__()
        self.levels: tuple[int, ...] = tuple(manifest.document["levels"])
        self.reduction = reduction_of(manifest.document, manifest.grid)
        self.calibration = calibration
        encoding = EncodingSpec(**manifest.document["encoding"])
        self.codecs = nn.ModuleDict(
            {
                str(level): LevelCodec(
                    encoding,
                    teacher=manifest.teacher,
                    level=level,
                    width=manifest.width,
                    grid=self.reduction.stored_grid,
                    statistics=None if calibration is None else calibration.levels[level],
                )
                for level in self.levels
            }
        )

    @torch.no_grad()
    def encode(self, features: FeatureMaps, samples: Sequence[str] = ()) -> Encoded:
        """Reduce and encode a batch of the teacher's maps, and measure what was kept; needs the calibration.

        FeatureError names teacher, level and sample (`samples` are keys) where a feature is not finite or does not fit.
        """
        if self.calibration is None:
            raise ValueError("encoding needs a calibration, to measure what it keeps")
        arrays: dict[str, Tensor] = {}
        fidelity = {}
        for level in self.levels:
            reduced = self.reduction(features[level])
            codec = self._codec(level)
            stored = codec.encode(reduced.map, samples)
            fidelity[level] = measure(reduced, codec.decode(stored), self.calibration.levels[level])
            arrays |= stored
            if reduced.leftover is not None:
                arrays[_leftover(level)] = reduced.leftover
        return Encoded(arrays, fidelity)

    def decode(
        self, arrays: Mapping[str, Tensor], levels: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Targets:
        """Stored arrays to the targets of `levels`: full maps, or projections with their left-over.

        Nothing of the result shares memory with `arrays`.
        """
        maps = [self._codec(level).decode(arrays, dtype) for level in levels]
        if not self.reduction.has_leftover:
            return FeatureMaps(tuple(levels), tuple(maps))
        grid = self.reduction.teacher_grid
        pairs = zip(maps, levels, strict=True)
        return TargetMaps(
            tuple(levels), tuple(ProjectedTarget(map_, arrays[_leftover(n)].clone(), grid) for map_, n in pairs)
        )

    def _codec(self, level: int) -> LevelCodec:
        return cast(LevelCodec, self.codecs[str(level)])  # a ModuleDict knows its modules as `nn.Module` alone


def _leftover(level: int) -> str:
    return f"l{level}/leftover"
