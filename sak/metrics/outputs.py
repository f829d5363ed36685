"""From what a head puts out to what metrics and pictures take, and the metric of each task, by the task table."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sak.metrics.depth import DepthError
from sak.metrics.maxf import MaxF
from sak.metrics.miou import MeanIoU
from sak.metrics.normals import MeanAngle
from sak.metrics.parts import PartsMeanIoU
from sak.tasks import Task

Device = torch.device | str

PixelMetric = MeanIoU | MaxF | MeanAngle | DepthError

_READ: dict[str, Callable[[Tensor], Tensor]] = {
    "mIoU": lambda output: output.argmax(1),
    "parts mIoU": lambda output: output.argmax(1),
    "maxF": lambda output: output.softmax(1)[:, 1],
    "mErr": lambda output: F.normalize(output, dim=1),
    "odsF": lambda output: output.sigmoid()[:, 0],
    "RMSE": lambda output: output.clamp(min=0)[:, 0],
}

_METRICS: dict[str, Callable[[Task, Device], PixelMetric]] = {
    "mIoU": lambda task, device: MeanIoU(task.channels, device=device),
    "parts mIoU": lambda task, device: PartsMeanIoU(task.channels, device=device),
    "maxF": lambda task, device: MaxF(device=device),
    "mErr": lambda task, device: MeanAngle(device=device),
    "RMSE": lambda task, device: DepthError(device=device),
}


def read_output(task: Task, output: Tensor) -> Tensor:
    """A head's output (B, channels, H, W) as the task's prediction, float32 or better.

    Class numbers (B, H, W) for mIoU; probabilities (B, H, W) of salient pixels and of boundaries; unit normals
    (B, 3, H, W); metres (B, H, W), at least 0.
    """
    return _READ[task.metric](output.to(torch.promote_types(output.dtype, torch.float32)))


def pixel_metric(task: Task, device: Device = "cpu") -> PixelMetric | None:
    """A new metric for the task's predictions, or None for boundaries, which are matched, not compared by pixel."""
    return _METRICS[task.metric](task, device) if task.metric in _METRICS else None
