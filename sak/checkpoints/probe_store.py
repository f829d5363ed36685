"""A probe's checkpoint: its heads, and in the header which teacher they sit on, whose weights stay where they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sak.amalgam import Amalgam, AmalgamConfig
from sak.checkpoints.store import write_whole
from sak.errors import SakError
from sak.probe import Probe, ProbeConfig

PROBE_WEIGHTS = "probe.safetensors"
PROBE_DESCRIPTION = "probe.json"
_FORMAT = "sak-probe-1"


def save_probe(probe: Probe, folder: Path) -> Path:
    """Write `probe.safetensors` (the heads) and `probe.json` into the folder; returns the weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = probe.config.to_json()
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in probe.learnt.state_dict().items()}
    header = {"format": _FORMAT, "config": json.dumps(config)}
    write_whole(folder / PROBE_WEIGHTS, lambda scratch: save_file(tensors, scratch, metadata=header))
    text = json.dumps({"format": _FORMAT, "config": config, "weights": PROBE_WEIGHTS}, indent=2)
    write_whole(folder / PROBE_DESCRIPTION, lambda scratch: scratch.write_text(text + "\n", encoding="utf-8"))
    return folder / PROBE_WEIGHTS


def load_probe(folder: Path, *, image_size: tuple[int, int] | None = None) -> Probe:
    """The probe of a checkpoint folder, on the CPU; SakError where its teacher is missing or has other weights."""
    file = folder / PROBE_WEIGHTS
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SakError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    if header.get("format") != _FORMAT:
        raise SakError(f"{file}: format {header.get('format')!r}, wanted {_FORMAT!r}")
    probe = _build(json.loads(header["config"]), image_size)
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
