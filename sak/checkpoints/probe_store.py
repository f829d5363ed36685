"""A probe's checkpoint: its heads, and in the header which teacher they sit on, whose weights stay where they are.

Not in `store`, which is imported where no teacher may be: distillation from a cache.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sak.checkpoints.store import saved_config, write_checkpoint
from sak.errors import SakError
from sak.variants.frozen import Amalgam, AmalgamConfig, Probe, ProbeConfig

PROBE_WEIGHTS = "probe.safetensors"
PROBE_DESCRIPTION = "probe.json"
_FORMAT = "sak-probe-1"


def save_probe(probe: Probe, folder: Path) -> Path:
    """Write `probe.safetensors` (the heads) and `probe.json` into the folder; returns the weights file."""
    facts = {"format": _FORMAT, "config": probe.config.to_json(), "weights": PROBE_WEIGHTS}
    return write_checkpoint(probe.learnt, folder, PROBE_DESCRIPTION, facts)


def load_probe(folder: Path, *, image_size: tuple[int, int] | None = None) -> Probe:
    """The probe of a checkpoint folder, on the CPU; SakError where its teacher is missing or has other weights."""
    probe = _build(saved_config(folder / PROBE_WEIGHTS, _FORMAT), image_size)
    fill_heads(probe, folder)
    return probe


def _build(value: Mapping[str, Any], image_size: tuple[int, int] | None) -> Probe:
    """A probe of one teacher, or an amalgamation of several, with fresh heads."""
    if "teachers" in value:
        several = AmalgamConfig.from_json(value)
        several = several if image_size is None else several.at(image_size)
        return Amalgam(several, several.build_teachers())
    config = ProbeConfig.from_json(value)
    config = config if image_size is None else config.at(image_size)
    return Probe(config, config.build_teacher())


@torch.no_grad()
def fill_heads(probe: Probe, folder: Path) -> None:
    """Put a checkpoint's heads onto a probe that is there; SakError where they are others."""
    try:
        probe.learnt.load_state_dict(load_file(folder / PROBE_WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise SakError(f"{folder} holds the heads of another probe; put the recipe back, or start a new run") from error
