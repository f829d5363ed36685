"""Maximum F-measure (saliency): over a data set as in multi-task learning, or by image as in saliency benchmarks."""

from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor

from sak.features import at_least_float32
from sak.metrics.streaming import StreamingMetric, class_numbers, images, ratio

BETA_SQUARED = 0.3
"""Weight of recall against precision."""

THRESHOLDS = torch.tensor([k / 20 for k in range(1, 20)], dtype=torch.float32)
"""A pixel is salient where p >= t."""

GREY_LEVELS = 256


@dataclass(frozen=True)
class MaxFResult:
    """Saliency of a data set, in percent.

    Attributes:
        value: the largest F over thresholds; NaN where no pixel counted.
        threshold: where it is reached.
        f: by threshold.
        precision: by threshold.
        recall: by threshold.
        iou: the largest over thresholds of the mean over images of intersection over union.
        images: that had a valid pixel.
    """

    value: float
    threshold: float
    f: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    iou: float
    images: int


class _Saliency(StreamingMetric):
    """What both metrics take, image by image."""

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Probabilities that a pixel is salient and labels of 0, 1 and 255, both (H, W) or (B, H, W)."""
        prediction, label = self._take(prediction, label)
        label = class_numbers(label, 2, "a saliency label (255 apart)")
        for probabilities, truth in zip(images(prediction), images(label), strict=True):
            self._add(probabilities, truth)

    def _add(self, prediction: Tensor, label: Tensor) -> None:
        """One image, its labels 0, 1 and 2 for what is left out."""
        raise NotImplementedError


class MaxF(_Saliency):
    """F at 19 thresholds from counts over the whole data set, and their maximum; pixels labelled 255 are left out.

    State: `tp` and `predicted`, int64 (19,); `positives`, `images`, int64 (); `iou`, float64 (19,), summed over images.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        bins = (len(THRESHOLDS),)
        counts = {"tp": bins, "predicted": bins, "positives": (), "images": ()}
        super().__init__(device, counts=counts, sums={"iou": bins})

    def _add(self, prediction: Tensor, label: Tensor) -> None:
        bins = len(THRESHOLDS) + 1
        pairs = torch.bincount(label.flatten() * bins + _levels_above(prediction), minlength=3 * bins)
        negative, positive = pairs.reshape(3, bins)[:2]
        salient, predicted = (
            _at_least(positive)[1:],
            _at_least(negative + positive)[1:],
        )  # every pixel reaches at least none
        self.state["tp"] += salient
        self.state["predicted"] += predicted
        self.state["positives"] += positive.sum()
        self.state["iou"] += ratio(salient, predicted + positive.sum() - salient)
        self.state["images"] += (negative + positive).any()

    def result(self) -> MaxFResult:
        """The scores so far."""
        state = {name: value.cpu() for name, value in self.state.items()}
        seen = int(state["images"])
        precision, recall = ratio(state["tp"], state["predicted"]), ratio(state["tp"], state["positives"])
        f = f_measure(precision, recall)
        best = int(f.argmax())
        return MaxFResult(
            value=100 * float(f[best]) if seen else nan,
            threshold=float(THRESHOLDS[best]),
            f=tuple((100 * f).tolist()),
            precision=tuple((100 * precision).tolist()),
            recall=tuple((100 * recall).tolist()),
            iou=100 * float(state["iou"].max()) / seen if seen else nan,
            images=seen,
        )


@dataclass(frozen=True)
class MaxFmResult:
    """The largest of 256 thresholds' mean F over images, in percent, its grey level, and how many images counted."""

    value: float
    grey_level: int
    images: int


class MaxFPerImage(_Saliency):
    """F of each image at 256 grey levels, the mean over images, and its maximum: `maxFm` of saliency benchmarks.

    As there, a prediction is first stretched to its own least and largest value, then cut to grey levels; an image
    without salient pixels has F 0. Pixels labelled 255 are left out.

    State: `f`, float64 (256,), summed over images, by grey level; `images`, int64 ().
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        super().__init__(device, counts={"images": ()}, sums={"f": (GREY_LEVELS,)})

    def _add(self, prediction: Tensor, label: Tensor) -> None:
        valid = label != 2
        if not bool(valid.any()):
            return
        grey, positive = _grey(prediction[valid]), label[valid] == 1
        predicted = _at_least(torch.bincount(grey, minlength=GREY_LEVELS))
        tp = _at_least(torch.bincount(grey[positive], minlength=GREY_LEVELS))
        self.state["f"] += f_measure(ratio(tp, predicted), ratio(tp, positive.sum()))
        self.state["images"] += 1

    def result(self) -> MaxFmResult:
        """The scores so far; NaN where no pixel counted."""
        f, seen = self.state["f"].cpu(), int(self.state["images"])
        best = int(f.argmax())
        return MaxFmResult(100 * float(f[best]) / seen if seen else nan, best, seen)


def f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    """(1 + b) P R / (b P + R) with b = beta^2 = 0.3; 0 where both are 0."""
    return ratio((1 + BETA_SQUARED) * precision * recall, BETA_SQUARED * precision + recall)


def _levels_above(probabilities: Tensor) -> Tensor:
    """How many thresholds each probability reaches, 0 to 19, uint8 (pixels,); compared in float32 or better.

    The whole part of 20 p is that number or one beside it, for rounding moves p and the thresholds by far less than
    they are apart; comparing p with the thresholds below and above settles it, in a fifth of the time of a search.
    """
    wide = at_least_float32(probabilities).flatten()
    guess = (20 * wide.clamp(0, 0.99)).int()
    ends = torch.tensor([-inf, *THRESHOLDS.tolist(), inf], dtype=wide.dtype, device=wide.device)
    below, above = ends[:-1].index_select(0, guess), ends[1:].index_select(0, guess)
    return (guess - (wide < below).int() + (wide >= above).int()).to(torch.uint8)


def _at_least(histogram: Tensor) -> Tensor:
    """From how many pixels are at each level to how many are at it or above."""
    return histogram.flip(0).cumsum(0).flip(0)


def _grey(probabilities: Tensor) -> Tensor:
    """Grey levels, int64, after stretching; float32's rounding of k / 255 does not push it below k."""
    exact = probabilities.double()
    low, high = exact.aminmax()
    stretched = (exact - low) / (high - low) if bool(high > low) else exact
    return (255 * stretched + 1e-4).long().clamp(0, 255)
