"""Mean intersection over union of human parts."""

from torch import Tensor

from sak.metrics.miou import MeanIoU
from sak.metrics.streaming import images


class PartsMeanIoU(MeanIoU):
    """`MeanIoU` over the seven parts, background among them, of the images that show a person.

    An image whose label holds only 0 and 255 says nothing, not "background everywhere": it is left out. Readers of the
    data sets have already made such a label all 255; labels from elsewhere may come as they are.
    """

    def _counted(self, label: Tensor) -> Tensor:
        maps = images(label)
        shows_person = ((maps != 0) & (maps != self.classes)).flatten(1).any(1)
        return maps.masked_fill(~shows_person[:, None, None], self.classes).view_as(label)
