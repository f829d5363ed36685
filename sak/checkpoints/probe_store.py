"""A probe's checkpoint: its heads, and in the header which teacher they sit on, whose weights stay where they are.

Not in `store`, which is imported where no teacher may be: distillation from a cache.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sak.checkpoints.store import save_checkpoint, saved_config
from sak.errors import SakError
from sak.variants.frozen import Amalgam, AmalgamConfig, Probe, ProbeConfig

PROBE_WEIGHTS = "probe.safetensors"
_FORMAT = "sak-probe-1"


def save_probe(probe: Probe, folder: Path) -> Path:
    """Write `probe.safetensors` (the heads) and `probe.json` into the folder; returns the weights file."""
    return save_checkpoint(probe.learnt, folder / PROBE_WEIGHTS, _FORMAT, probe.config.to_json())


def load_probe(folder: Path, *, image_size: tuple[int, int] | None = None) -> Probe:
    """The probe of a checkpoint folder, on the CPU; SakError where its teacher is missing or has other weights."""
    value = saved_config(folder / PROBE_WEIGHTS, _FORMAT)
    if image_size is not None:
        value["image_size"] = image_size
    probe: Probe
    if "teachers" in value:
        several = AmalgamConfig.from_json(value)
        probe = Amalgam(several, several.build_teachers())
    else:
        config = ProbeConfig.from_json(value)
        probe = Probe(config, config.build_teacher())
    fill_heads(probe, folder)
    return probe


@torch.no_grad()
def fill_heads(probe: Probe, folder: Path) -> None:
    """Put a checkpoint's heads onto a probe that is there; SakError where they are others."""
    try:
        probe.learnt.load_state_dict(load_file(folder / PROBE_WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise SakError(f"{folder} holds the heads of another probe; put the recipe back, or start a new run") from error
