"""One level of one teacher to stored arrays and back, on any device: a map, reduced by `projection`, becomes int8.

`LevelCodec` makes tokens of the map, standardises them where the kind needs it (int8, int4, any PCA), and quantizes
them. Decoding is a few fused operations on the training path: no synchronisation, no branch on data, the same bits each
time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.cache.calibration import NOT_FINITE, LevelStatistics, batch_sample
from pipeline.cache.quantizers import QUANTIZERS
from pipeline.cache.spec import EncodingSpec
from pipeline.cache.stores.base import ArrayLayout
from sak.errors import SakError
from sak.features import map_to_tokens, tokens_to_map
from sak.losses.projection import Grid

_FAVOUR = 0.01  # see `ChannelScale`


class FeatureError(SakError):
    """Features that cannot be stored: not finite, or beyond what the encoding holds."""


class ChannelScale(nn.Module):
    """(x - mean) / std per channel, then onto the principal components in units of their own deviation; and back.

    All components come out with variance about 1, so one scale per token serves them alike. With `favour` (int4 without
    PCA) a channel that holds the share f of all C channels' raw variance is made sqrt(1 + favour * C * f) times larger,
    so that its error is as much smaller: where a few huge channels make the cosine of raw features, that saves half or
    more of what the cosine would lose, and costs the standardised error half a percent of itself.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor | None
    deviation: Tensor

    def __init__(self, statistics: LevelStatistics, favour: float = 0.0) -> None:
        super().__init__()
        basis, scale = statistics.basis, statistics.scale
        weights = (1 + favour * scale.square() / scale.square().mean()).sqrt()
        self.channels = statistics.mean.numel() if basis is None else basis.shape[1]
        self.register_buffer("mean", statistics.mean.float(), persistent=False)
        self.register_buffer("scale", (scale / weights).float(), persistent=False)
        self.register_buffer("basis", None if basis is None else basis.float(), persistent=False)
        self.register_buffer("deviation", _deviation(statistics), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C or k), float32."""
        standard = (tokens - self.mean) / self.scale
        return standard if self.basis is None else (standard @ self.basis) / self.deviation

    def inverse(self, values: Tensor) -> Tensor:
        """(B, N, C or k) to (B, N, C), float32; what lies outside the components comes back as the mean."""
        standard = values if self.basis is None else (values * self.deviation) @ self.basis.T
        return torch.addcmul(self.mean, standard, self.scale)


def level_layout(encoding: EncodingSpec, level: int, width: int, grid: Grid) -> tuple[ArrayLayout, ...]:
    """What is stored of one sample's map: `l<level>/values` and, for the integers, `l<level>/scales`."""
    stored = QUANTIZERS[encoding.kind](encoding.pca or width).arrays(grid[0] * grid[1])
    return tuple(replace(array, name=f"l{level}/{array.name}") for array in stored)


class LevelCodec(nn.Module):
    """The encoding of one level: `arrays` says what lies in the store, `encode` and `decode` go there and back.

    `statistics` may be None for float16 and bfloat16 without PCA, which keep raw features.
    """

    def __init__(
        self,
        encoding: EncodingSpec,
        *,
        teacher: str,
        level: int,
        width: int,
        grid: Grid,
        statistics: LevelStatistics | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.level, self.width, self.grid, self.encoding = teacher, level, width, grid, encoding
        self.standardiser = self._standardiser(statistics)
        self.quantizer = QUANTIZERS[encoding.kind](encoding.pca or width)

    @property
    def arrays(self) -> tuple[ArrayLayout, ...]:
        """What is stored of a sample: `l<level>/values` and, for the integers, `l<level>/scales`."""
        return level_layout(self.encoding, self.level, self.width, self.grid)

    @torch.no_grad()
    def encode(self, maps: Tensor, samples: Sequence[str] = ()) -> dict[str, Tensor]:
        """Maps (B, C, H, W) of any float dtype to arrays of leading dimension B, named as in `arrays`, same device.

        FeatureError names teacher, level and sample (`samples` are the batch's keys) where a feature is not finite or
        does not fit: float16 ends at 65,504. Waits for the device once.
        """
        expected = (self.width, *self.grid)
        if maps.ndim != 4 or tuple(maps.shape[1:]) != expected:
            raise ValueError(
                f"{self._where}: maps must be (B, {', '.join(map(str, expected))}), got {tuple(maps.shape)}"
            )
        with torch.autocast(maps.device.type, enabled=False):
            tokens = map_to_tokens(maps).float()
            stored = self.quantizer.encode(tokens if self.standardiser is None else self.standardiser(tokens))
        self._refuse_unfit(tokens, stored, samples)
        return {self._name(name): array for name, array in stored.items()}

    def decode(self, arrays: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """The arrays, by the names in `arrays` (others are not looked at), to maps (B, C, H, W).

        Absent samples, which stores read as their fill values, come back as NaN. The maps are channels-last in memory.
        """
        stored = {array.name: arrays[self._name(array.name)] for array in self.quantizer.arrays(1)}
        with torch.autocast(stored["values"].device.type, enabled=False):
            values = self.quantizer.decode(stored)
            tokens = values if self.standardiser is None else self.standardiser.inverse(values)
        return tokens_to_map(tokens.to(dtype), prefix=0, grid=self.grid)

    def _name(self, array: str) -> str:
        return f"l{self.level}/{array}"

    @property
    def _where(self) -> str:
        return f"teacher {self.teacher}, level {self.level}"

    def _standardiser(self, statistics: LevelStatistics | None) -> ChannelScale | None:
        encoding = self.encoding
        if encoding.kind in ("float16", "bfloat16") and encoding.pca is None:
            return None
        if statistics is None:
            raise ValueError(f"{self._where}: {encoding.kind} needs the statistics of a calibration")
        if statistics.mean.numel() != self.width:
            raise ValueError(f"{self._where}: statistics of {statistics.mean.numel()} channels for {self.width}")
        components = None if statistics.basis is None else statistics.basis.shape[1]
        if components != encoding.pca:
            raise ValueError(
                f"{self._where}: statistics hold {components} components, the encoding wants {encoding.pca}"
            )
        return ChannelScale(statistics, _FAVOUR if encoding.kind == "int4" and encoding.pca is None else 0.0)

    def _refuse_unfit(self, tokens: Tensor, stored: Mapping[str, Tensor], samples: Sequence[str]) -> None:
        limiting = stored.get("scales", stored["values"])
        limiting = limiting.view(torch.bfloat16) if self.encoding.kind == "bfloat16" else limiting
        fits = _largest(tokens).isfinite() & _largest(limiting).isfinite()
        if bool(fits.all()):
            return
        first = int((~fits).nonzero()[0])
        where, values = f"{self._where}, {batch_sample(samples, first)}", tokens[first]
        if not bool(values.isfinite().all()):
            raise FeatureError(f"{where}: {NOT_FINITE}")
        raise FeatureError(
            f"{where}: features up to {float(values.abs().max()):.6g} do not fit {self.encoding.kind}; "
            "choose encoding bfloat16 or int8"
        )


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude of each sample, (B, ...) to (B,): NaN or infinite where anything in it is."""
    return values.flatten(1).abs().amax(1)


def _deviation(statistics: LevelStatistics) -> Tensor:
    """The components' standard deviations, at least a millionth of the first; a single 1 without PCA."""
    if statistics.variance is None:
        return torch.ones(1)
    deviation = statistics.variance.sqrt()
    return deviation.clamp(min=max(1e-6 * float(deviation[0]), torch.finfo(torch.float32).tiny)).float()
