"""Depth errors."""

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from sak.metrics.streaming import StreamingMetric

FARTHEST = 80.0
"""Metres; labels from 0 to it, both excluded, count."""

CLOSE = 1.25


@dataclass(frozen=True)
class DepthResult:
    """Depth over the valid pixels of a data set; NaN without any.

    Attributes:
        value: root mean squared error over all pixels of the set, not the mean over images, in metres.
        abs_rel: mean of |prediction - label| / label.
        within_125: share of pixels where prediction / label and its inverse are below 1.25, in percent.
        pixels: that counted.
    """

    value: float
    abs_rel: float
    within_125: float
    pixels: int


class DepthError(StreamingMetric):
    """Errors over pixels with 0 < label < 80 metres, predictions below 0 taken as 0 (so 255 marks an ignored pixel).

    State: `squares` and `relative`, float64 (); `close` and `pixels`, int64 ().
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        super().__init__(device, counts={"close": (), "pixels": ()}, sums={"squares": (), "relative": ()})

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Metres, of one shape, whatever it is."""
        prediction, label = self._take(prediction, label)
        valid = (label > 0) & (label < FARTHEST)
        # what does not count is a perfect metre: no error, and taken from the close ones below
        prediction = prediction.double().clamp(min=0).where(valid, 1.0)
        label = label.double().where(valid, 1.0)
        error = (prediction - label).abs_()
        pixels = valid.count_nonzero()
        close = (prediction < CLOSE * label) & (label < CLOSE * prediction)
        self.state["squares"] += error.square().sum()
        self.state["relative"] += (error / label).sum()
        self.state["close"] += close.count_nonzero() - (valid.numel() - pixels)
        self.state["pixels"] += pixels

    def result(self) -> DepthResult:
        """The scores so far."""
        state = {name: value.item() for name, value in self.state.items()}
        pixels = int(state["pixels"])
        if not pixels:
            return DepthResult(nan, nan, nan, 0)
        return DepthResult(
            value=(state["squares"] / pixels) ** 0.5,
            abs_rel=state["relative"] / pixels,
            within_125=100 * state["close"] / pixels,
            pixels=pixels,
        )
