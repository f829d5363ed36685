"""The losses of the downstream tasks: a prediction (B, K, H, W) against labels of its size, pixels of 255 left out.

All are computed in float32 (float64 where the prediction is float64) whatever autocast says, and divided by the valid
pixels of the whole batch, at least 1. Where processes share a batch, each divides by the mean of their counts
(`average`), so that the mean of their losses is the loss of the batch. A departure from the published code: where a
batch has no valid pixel, every loss here is 0 with gradient 0; there edge gives NaN and saliency an error.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.errors import UsageError
from sak.features import at_least_float32
from sak.tasks import IGNORE, Dataset, Task

EDGE_POSITIVE_WEIGHT = 0.95
"""Weight of boundary pixels in the edge loss; the others have the rest."""

Average = Callable[[Tensor], Tensor]
"""A scalar of this process to its mean over all processes."""


def alone(value: Tensor) -> Tensor:
    """The mean over one process."""
    return value


SHORTEST_NORMAL = 1e-12
"""A shorter predicted normal is divided by this."""


def cross_entropy(prediction: Tensor, label: Tensor, average: Average = alone) -> Tensor:
    """Cross-entropy of logits (B, K, H, W) with classes (B, 1, H, W), the sum over valid pixels / their number."""
    classes = _classes(label)
    loss = F.cross_entropy(at_least_float32(prediction), classes, ignore_index=IGNORE, reduction="sum")
    return loss / _at_least_one(average((classes != IGNORE).sum())).to(loss)


def balanced_cross_entropy(prediction: Tensor, label: Tensor, average: Average = alone) -> Tensor:
    """Two-class cross-entropy, each class weighted by the batch's share of the other; sum / valid pixels.

    The weights do not cancel in the quotient: it is divided by pixels, not by weights. Labels are 0, 1 or 255.
    """
    prediction, classes = at_least_float32(prediction), _classes(label)
    valid = _at_least_one(average((classes != IGNORE).sum())).to(prediction)
    negatives = average((classes == 0).sum()).to(prediction) / valid
    weights = torch.stack([1 - negatives, negatives])
    return F.cross_entropy(prediction, classes, weight=weights, ignore_index=IGNORE, reduction="sum") / valid


def balanced_bce(prediction: Tensor, label: Tensor, average: Average = alone) -> Tensor:
    """Binary cross-entropy of logits (B, 1, H, W), positives times 0.95 and negatives times 0.05; mean over valid.

    The two weights come from 0.95 in the prediction's dtype, as in the published code: in float32 the negatives' one is
    larger than 0.05 by 2.4e-7 of it, which its gradients show.
    """
    prediction, label = at_least_float32(prediction), label.to(at_least_float32(prediction))
    valid = label != IGNORE
    positive = torch.full((), EDGE_POSITIVE_WEIGHT, dtype=prediction.dtype, device=prediction.device)
    loss = F.binary_cross_entropy_with_logits(
        prediction,
        label * valid,
        weight=valid.to(prediction),
        pos_weight=positive / (1 - positive),
        reduction="sum",
    )
    return loss / _at_least_one(average(valid.sum())).to(loss) * (1 - positive)


def normals_l1(prediction: Tensor, label: Tensor, average: Average = alone) -> Tensor:
    """L1 between the normalised prediction and the label as decoded, (B, 3, H, W); summed over channels / valid pixels.

    The label is not normalised. A pixel with 255 in any channel is invalid.
    """
    return _l1(F.normalize(at_least_float32(prediction), dim=1, eps=SHORTEST_NORMAL), label, average)


def l1(prediction: Tensor, label: Tensor, average: Average = alone) -> Tensor:
    """L1 between prediction and label, (B, K, H, W); summed over channels / valid pixels."""
    return _l1(at_least_float32(prediction), label, average)


LOSSES: dict[str, Callable[[Tensor, Tensor, Average], Tensor]] = {
    loss.__name__: loss for loss in (cross_entropy, balanced_cross_entropy, balanced_bce, normals_l1, l1)
}
"""By the names used in the task table."""


def task_losses(
    dataset: Dataset, predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor], *, average: Average = alone
) -> dict[str, Tensor]:
    """Each task's loss, before its weight: task -> scalar.

    Predictions are (B, channels, H, W) at the labels' size, labels (B, 1 or 3, H, W) of any dtype with 255 where they
    do not count. UsageError where one is missing, or a size does not fit.
    """
    losses = {}
    for task in dataset:
        if task.name not in predictions or task.name not in labels:
            side = "prediction" if task.name not in predictions else "label"
            raise UsageError(f"{dataset.name}: no {side} for {task.name}; train with the tasks that there is data for")
        prediction, label = predictions[task.name], labels[task.name]
        _check(task, prediction, label)
        with torch.autocast(prediction.device.type, enabled=False):
            losses[task.name] = LOSSES[task.loss](prediction, label, average)
    return losses


def _check(task: Task, prediction: Tensor, label: Tensor) -> None:
    channels = 1 if task.classes else task.channels
    expected = (prediction.shape[0], channels, *prediction.shape[2:])
    if prediction.shape[1] != task.channels or tuple(label.shape) != expected:
        raise UsageError(
            f"{task.name}: a prediction of {task.channels} channels needs labels {expected}, "
            f"got {tuple(prediction.shape)} and {tuple(label.shape)}"
        )


def _l1(prediction: Tensor, label: Tensor, average: Average) -> Tensor:
    """Over pixels none of whose label channels is 255."""
    valid = (label != IGNORE).all(dim=1, keepdim=True)
    difference = (prediction - torch.where(valid, label.to(prediction), prediction.detach())).abs()
    return (difference * valid).sum() / _at_least_one(average(valid.sum())).to(difference)


def _classes(label: Tensor) -> Tensor:
    """Class numbers of (B, 1, H, W) labels of any dtype, int64 (B, H, W)."""
    return label.squeeze(1).long()


def _at_least_one(count: Tensor) -> Tensor:
    """The count itself, or 1 where nothing was counted: a mean of counts may well lie between."""
    return count.where(count > 0, 1)
