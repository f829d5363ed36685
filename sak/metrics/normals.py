"""Angular error of surface normals."""

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from sak.errors import SakError
from sak.metrics.streaming import StreamingMetric
from sak.tasks import IGNORE

LIMITS = (11.25, 22.5, 30.0)
"""Degrees; the share of pixels below each is reported."""

BIN = 1e-4
"""Width in degrees of the histogram that the median is read from."""

CHUNK = 2**16
"""Pixels at a time; what is computed of them stays in a processor's cache, which doubles the speed."""


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
    """The mean angle over valid pixels, both vectors normalised, in float64.

    State: `sum` and `squares`, float64 (); `pixels`, int64 (); `under`, int64 (3,); `histogram`, int64 (1800001,).
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        counts = {"pixels": (), "under": (len(LIMITS),), "histogram": (round(180 / BIN) + 1,)}
        super().__init__(device, counts=counts, sums={"sum": (), "squares": ()})

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Vectors of any length, (3, H, W) or (B, 3, H, W); a label of 255 in any channel leaves its pixel out."""
        prediction, label = self._take(prediction, label)
        first, second = (vectors.movedim(-3, 0).reshape(3, -1).split(CHUNK, dim=1) for vectors in (prediction, label))
        for vectors, truth in zip(first, second, strict=True):
            x, y, z = truth
            self._add(_degrees(vectors, truth), (x != IGNORE) & (y != IGNORE) & (z != IGNORE))

    def _add(self, angles: Tensor, valid: Tensor) -> None:
        """Angles in degrees and which of them count, (N,) each; masked in place of gathered, which takes longer."""
        angles = angles.where(valid, 0.0)
        total, pixels = angles.sum(), valid.count_nonzero()
        if not bool(total.isfinite()):
            raise SakError("MeanAngle: a label holds values that are not finite; mark pixels to leave out with 255")
        under = torch.stack([(angles < limit).count_nonzero() for limit in LIMITS])
        self.state["sum"] += total
        self.state["squares"] += angles.square().sum()
        self.state["pixels"] += pixels
        self.state["under"] += under - (valid.numel() - pixels)
        self.state["histogram"].scatter_add_(0, (angles / BIN).long(), valid.long())

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
    """Angles between the columns of two (3, N), (N,) in float64; a vector of length zero is at 90 degrees to all.

    atan2(|a x b|, a . b) is the same angle as 2 atan2(|a - b|, |a + b|) of the normalised vectors, as well conditioned
    everywhere, and needs neither lengths nor divisions.
    """
    ax, ay, az = first.double()
    bx, by, bz = second.double()
    across = _determinant(ay, az, by, bz).square_()
    across.addcmul_(x := _determinant(az, ax, bz, bx), x).addcmul_(x := _determinant(ax, ay, bx, by), x)
    along = torch.addcmul(ax * bx, ay, by).addcmul_(az, bz)
    # the smallest of additions makes the angle of two zeros 90 degrees and leaves every other as it is
    return torch.atan2(across.sqrt_().add_(1e-300), along).rad2deg_()


def _determinant(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The determinant of [[a, b], [c, d]]."""
    return torch.addcmul(a * d, b, c, value=-1)


def _median(histogram: Tensor, count: int) -> float:
    """The middle of the bin with the middle value; of an even number of values, the mean of the two middle ones."""
    ranks = torch.tensor([(count - 1) // 2, count // 2])
    bins = torch.searchsorted(histogram.cumsum(0), ranks, right=True)
    return float((bins + 0.5).mean() * BIN)
