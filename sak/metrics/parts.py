"""Mean intersection over union of human parts."""

from torch import Tensor

from sak.metrics.miou import MeanIoU
from sak.metrics.streaming import images
from sak.tasks import IGNORE


class PartsMeanIoU(MeanIoU):
    """`MeanIoU` over the seven parts, background among them, of the images that show a person.

    An image whose label holds only 0 and 255 says nothing, not "background everywhere": it is left out. Readers of the
    data sets have already made such a label all 255; labels from elsewhere may come as they are.
    """

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Class numbers of any dtype, (H, W) or (B, H, W); SakError for unknown classes or differing sizes."""
        prediction, label = self._take(prediction, label)
        label = images(label)
        shows_person = ((label != 0) & (label != IGNORE)).flatten(1).any(1)
        super().update(images(prediction), label.where(shows_person[:, None, None], IGNORE))
