"""All levels of one column: teacher maps to stored arrays, and stored arrays to what the losses compare with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cache.calibration import Calibration
from pipeline.cache.encoding import LevelCodec
from pipeline.cache.fidelity import LevelFidelity, measure
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.manifest import Manifest
from pipeline.cache.quantizers import QUANTIZERS
from pipeline.cache.reduction import Reduction
from pipeline.cache.spec import EncodingSpec
from sak.features import FeatureMaps
from sak.losses.targets import ProjectedTarget, TargetMaps, Targets

Grid = tuple[int, int]


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
    quantizer = QUANTIZERS[encoding.kind](encoding.pca or width)
    tokens = reduction.stored_grid[0] * reduction.stored_grid[1]
    arrays = []
    for level in document["levels"]:
        stored = quantizer.arrays(tokens).items()
        arrays += [ArrayLayout(f"l{level}/{name}", each.dtype, each.shape, each.fill) for name, each in stored]
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
        codec = self.codecs[str(level)]
        if not isinstance(codec, LevelCodec):
            raise TypeError(type(codec))
        return codec


def _leftover(level: int) -> str:
    return f"l{level}/leftover"
