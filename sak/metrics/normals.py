"""Angular error of surface normals."""

from dataclasses import dataclass
from math import nan

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.metrics.streaming import StreamingMetric
from sak.tasks import IGNORE

LIMITS = (11.25, 22.5, 30.0)
"""Degrees; the share of pixels below each is reported."""

BIN = 1e-4
"""Width in degrees of the histogram that the median is read from."""


@dataclass(frozen=True)
class NormalsResult:
    """Angles between predicted and labelled normals over the valid pixels of a data set, in degrees; NaN without any.

    Attributes:
        value: the mean (mErr).
        median: from a histogram, exact to half of 1e-4 degrees.
        rmse: root of the mean square.
        under: share of pixels below 11.25, 22.5 and 30 degrees, in percent.
        pixels: that counted.
    """

    value: float
    median: float
    rmse: float
    under: tuple[float, ...]
    pixels: int


class MeanAngle(StreamingMetric):
    """The mean angle over valid pixels, both vectors normalised: 2 atan2(|a - b|, |a + b|), in float64.

    State: `sum` and `squares`, float64 (); `pixels`, int64 (); `under`, int64 (3,); `histogram`, int64 (1800001,).
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("sum", "squares")}
        sizes = {"pixels": (), "under": (len(LIMITS),), "histogram": (round(180 / BIN) + 1,)}
        counts = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}
        super().__init__(**sums, **counts)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Vectors of any length, (3, H, W) or (B, 3, H, W); a label of 255 in any channel leaves its pixel out."""
        prediction, label = self._take(prediction, label)
        valid = (label != IGNORE).all(dim=-3)
        angles = _degrees(prediction.movedim(-3, -1)[valid].double(), label.movedim(-3, -1)[valid].double())
        bins = (angles / BIN).long()
        self.state["sum"] += angles.sum()
        self.state["squares"] += angles.square().sum()
        self.state["pixels"] += angles.numel()
        self.state["under"] += torch.stack([(angles < limit).sum() for limit in LIMITS])
        self.state["histogram"].index_add_(0, bins, torch.ones_like(bins))

    def result(self) -> NormalsResult:
        """The scores so far."""
        state = {name: value.cpu() for name, value in self.state.items()}
        pixels = int(state["pixels"])
        if not pixels:
            return NormalsResult(nan, nan, nan, (nan,) * len(LIMITS), 0)
        return NormalsResult(
            value=float(state["sum"]) / pixels,
            median=_median(state["histogram"], pixels),
            rmse=(float(state["squares"]) / pixels) ** 0.5,
            under=tuple((100 * state["under"].double() / pixels).tolist()),
            pixels=pixels,
        )


def _degrees(first: Tensor, second: Tensor) -> Tensor:
    """Angles between rows of two (N, 3), (N,); a vector of length zero is at 90 degrees to all."""
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    half = torch.atan2((first - second).norm(dim=1), (first + second).norm(dim=1))
    return (2 * half).rad2deg().clamp(0, 180)


def _median(histogram: Tensor, count: int) -> float:
    """The middle of the bin with the middle value; of an even number of values, the mean of the two middle ones."""
    ranks = torch.tensor([(count - 1) // 2, count // 2])
    bins = torch.searchsorted(histogram.cumsum(0), ranks, right=True)
    return float((bins + 0.5).mean() * BIN)
