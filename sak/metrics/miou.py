"""Mean intersection over union: semantic segmentation and human parts."""

from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Tensor

from sak.metrics.streaming import StreamingMetric, class_numbers, images
from sak.tasks import IGNORE

Absent = Literal["zero", "skip"]


@dataclass(frozen=True)
class IoUResult:
    """Intersection over union of a data set, in percent.

    Attributes:
        value: the mean by the convention asked for; NaN where no pixel counted.
        absent_as: that convention: `zero` (published code) takes an absent class as 0, `skip` leaves it out.
        value_all: the mean over all classes, absent ones as 0.
        value_present: the mean over the classes that occur.
        per_class: by class number; NaN for an absent one.
        absent: numbers of the classes that occur in no valid label and no prediction there.
        pixels: that counted.
        accuracy: share of them that is right.
    """

    value: float
    absent_as: Absent
    value_all: float
    value_present: float
    per_class: tuple[float, ...]
    absent: tuple[int, ...]
    pixels: int
    accuracy: float


class MeanIoU(StreamingMetric):
    """tp / (tp + fp + fn) of the whole data set, the mean over classes; pixels labelled 255 are left out.

    State: `confusion`, int64 (classes, classes), rows are labels, columns predictions.
    """

    def __init__(self, classes: int, *, absent: Absent = "zero", device: torch.device | str = "cpu") -> None:
        if not 1 <= classes <= IGNORE:
            raise ValueError(
                f"labels are bytes and {IGNORE} is ignored, so there are 1 to {IGNORE} classes, not {classes}"
            )
        super().__init__(device, counts={"confusion": (classes, classes)}, sums={})
        self.classes = classes
        self.absent: Absent = absent

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Class numbers of any dtype and shape, both alike; SakError for unknown classes or differing sizes."""
        prediction, label = self._take(prediction, label)
        rows = self._counted(class_numbers(label, self.classes, "a label (255 apart)"))
        columns = class_numbers(prediction, self.classes, "a prediction", within=rows != self.classes)
        # an ignored pixel is in the last row and column, which are cut off
        side = self.classes + 1
        pairs = torch.bincount((rows.int() * side + columns).flatten(), minlength=side**2).reshape(side, side)
        self.state["confusion"] += pairs[: self.classes, : self.classes]

    def _counted(self, label: Tensor) -> Tensor:
        """The label's classes, `self.classes` where a pixel is left out; a subclass may leave out more."""
        return label

    def result(self) -> IoUResult:
        """The scores so far."""
        confusion = self.state["confusion"].cpu()
        right, pixels = confusion.diagonal(), int(confusion.sum())
        union = confusion.sum(0) + confusion.sum(1) - right
        present = union > 0
        shares = 100 * right[present].double() / union[present]
        per_class = torch.full((self.classes,), nan, dtype=torch.float64).masked_scatter(present, shares)
        over_all = float(shares.sum()) / self.classes if pixels else nan
        over_present = float(shares.mean()) if pixels else nan
        return IoUResult(
            value=over_all if self.absent == "zero" else over_present,
            absent_as=self.absent,
            value_all=over_all,
            value_present=over_present,
            per_class=tuple(per_class.tolist()),
            absent=tuple((~present).nonzero().flatten().tolist()),
            pixels=pixels,
            accuracy=100 * int(right.sum()) / pixels if pixels else nan,
        )


class PartsMeanIoU(MeanIoU):
    """`MeanIoU` over the seven parts, background among them, of the images that show a person.

    An image whose label holds only 0 and 255 says nothing, not "background everywhere": it is left out. Readers of the
    data sets have already made such a label all 255; labels from elsewhere may come as they are.
    """

    def _counted(self, label: Tensor) -> Tensor:
        maps = images(label)
        shows_person = ((maps != 0) & (maps != self.classes)).flatten(1).any(1)
        return maps.masked_fill(~shows_person[:, None, None], self.classes).view_as(label)
