"""Devices, precision and trackers of a run (accelerate's), and BatchNorm over all ranks' images."""

import atexit
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from pipeline.settings import flattened
from pipeline.train.config import TrainingConfig
from sak.errors import UsageError, nearest

TRACKERS = ("tensorboard", "wandb")
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(
    config: TrainingConfig, *, device: str, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Devices, precision and trackers (which write into `folder`); `device` is cpu or cuda, already resolved.

    accelerate keeps one state a process; here each run has its own, but for the process group, which is kept.
    """
    check_trackers(trackers)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    AcceleratorState._reset_state(reset_partial_state=not distributed and PartialState._shared_state != {})
    GradientState._reset_state()
    if distributed:
        atexit.register(_end_process_group)
    precision = _PRECISIONS[config.precision]
    return Accelerator(
        mixed_precision=precision, cpu=device == "cpu", log_with=list(trackers) or None, project_dir=folder
    )


def check_trackers(trackers: Sequence[str]) -> None:
    """UsageError for an unknown tracker, or one that is not installed."""
    for name in trackers:
        if name not in TRACKERS:
            raise UsageError(f"no tracker {name!r}{nearest(name, TRACKERS)}")
        if find_spec(name) is None:
            raise UsageError(f"tracker {name} is not installed; add it with `pip install 'sak[tracking]'`")


def start_trackers(accelerator: Accelerator, project: str, settings: Mapping[str, Any]) -> None:
    """Tell the trackers, if there are any, what the run is; nested settings get dotted names.

    wandb names its run after the run's directory and keeps its files there.
    """
    if not accelerator.log_with:
        return
    folder = Path(accelerator.project_dir or ".")
    own = {"wandb": {"dir": str(folder), "name": folder.resolve().name}}
    plain = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in flattened(settings)
    }
    accelerator.init_trackers(project, config=plain, init_kwargs=own)


def finish_trackers(accelerator: Accelerator) -> None:
    """Let the trackers write what they hold; accelerate's own way also ends the process group."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _end_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class SummedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose training statistics are of all ranks' images, as one rank with the whole batch has them.

    Every rank has as many images. PyTorch's own SyncBatchNorm, which does the same, needs CUDA.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to the same; evaluation and running statistics are BatchNorm2d's."""
        if not self.training:
            return super().forward(images)
        mean, variance = _moments(images)
        self._remember(mean.detach(), variance.detach(), images)
        scale = torch.rsqrt(variance + self.eps)
        scale = scale * self.weight if self.weight is not None else scale
        offset = (self.bias if self.bias is not None else 0) - mean * scale
        return images * scale[:, None, None].to(images) + offset[:, None, None].to(images)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, images: Tensor) -> None:
        """The running statistics, with the variance over n - 1."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        count = images.numel() // images.shape[1] * dist.get_world_size()
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var), share)


def synchronise(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model with every BatchNorm2d synchronised, in place; a single rank is left as it is."""
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _summed(child))
    return model


def _summed(plain: nn.BatchNorm2d) -> SummedBatchNorm:
    """The same layer, with the same tensors."""
    made = SummedBatchNorm(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
    made.weight, made.bias = plain.weight, plain.bias
    made.running_mean, made.running_var = plain.running_mean, plain.running_var
    made.num_batches_tracked = plain.num_batches_tracked
    return made.train(plain.training)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (over n) of each channel over all ranks, from sums of each rank's own moments."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    own = wide.mean((0, 2, 3))
    spread = wide.var((0, 2, 3), unbiased=False)
    mean = _average(own)
    return mean, _average(spread + (own - mean).square())


def _average(values: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(values)
    return summed / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum over ranks of theirs, because every rank's loss has every value."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        """Every rank gets it."""
        del context
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Every rank gets it."""
        return _Sum.forward(context, gradients[0])
