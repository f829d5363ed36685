"""accelerate's entry: devices, precision, trackers."""

import atexit
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from pipeline.training.config import TrainingConfig
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
    cpu = device == "cpu"
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    AcceleratorState._reset_state(reset_partial_state=not distributed and PartialState._shared_state != {})
    GradientState._reset_state()
    if distributed:
        atexit.register(_end_process_group)
    precision = _PRECISIONS[config.precision]
    return Accelerator(mixed_precision=precision, cpu=cpu, log_with=list(trackers) or None, project_dir=folder)


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
    accelerator.init_trackers(project, config=dict(_flat(settings)), init_kwargs=own)


def finish_trackers(accelerator: Accelerator) -> None:
    """Let the trackers write what they hold; accelerate's own way also ends the process group."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _end_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Mapping[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
