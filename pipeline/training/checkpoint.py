"""Training checkpoints: all that an exact resume needs, as safetensors and JSON; nothing is ever unpickled.

checkpoints/step-00000120/   student.safetensors, student.json   the model, usable on its own
                             ema/                                the averaged model, where there is one
                             training.safetensors                optimiser
                             random-<rank>.safetensors           random generators of every process
                             training.json                       step and the rest
checkpoints/last, best       links to one of them, moved when it is whole

A checkpoint is filled under another name and renamed, so one that has its name is whole.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sak.errors import SakError

DONE = "training.json"
TENSORS = "training.safetensors"
FORMAT = "sak-training-1"


class CheckpointError(SakError):
    """A checkpoint is missing, damaged or does not fit the run."""


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds beside the model: steps done, tensors by name, and plain values."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return checkpoints / f"step-{step:08d}"


@contextmanager
def new_checkpoint(checkpoints: Path, step: int) -> Iterator[Path]:
    """A scratch folder to fill, which becomes the checkpoint of `step` in one piece once the block has ended.

    One of that step that a killed run left, with no link to it yet, is replaced. CheckpointError where the disk does
    not take it.
    """
    final = step_folder(checkpoints, step)
    scratch = final.with_name(f".{final.name}.part")
    try:
        for leftover in checkpoints.glob(".step-*.part"):
            shutil.rmtree(leftover)
        scratch.mkdir(parents=True)
        yield scratch
        for path in sorted(scratch.rglob("*")):
            _sync(path)
        _sync(scratch)
        if final.exists():
            shutil.rmtree(final)
        scratch.replace(final)
        _sync(checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(f"{final} cannot be written ({error}); make room, then go on with --resume") from error


def write_state(folder: Path, state: TrainingState) -> None:
    """Write the training state into a checkpoint's folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, folder / TENSORS)
    document = {"format": FORMAT, "step": state.step, "values": dict(state.values)}
    (folder / DONE).write_text(json.dumps(document, indent=1) + "\n")


def read_state(folder: Path) -> TrainingState:
    """The training state of a checkpoint; CheckpointError where it is not whole."""
    try:
        document = json.loads((folder / DONE).read_text())
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint ({error}); resume from another, or start anew"
        ) from error
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: format {document.get('format')!r}, this version reads {FORMAT!r}")
    return TrainingState(int(document["step"]), tensors, document["values"])


def point(checkpoints: Path, name: str, folder: Path) -> None:
    """Make `checkpoints/<name>` lead to `folder`, in one step."""
    scratch = checkpoints / f".{name}.link"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(folder.name)
    scratch.replace(checkpoints / name)
    _sync(checkpoints)


def remove_unused(checkpoints: Path) -> None:
    """Remove the checkpoints that no link leads to."""
    kept = {link.resolve() for link in checkpoints.iterdir() if link.is_symlink()}
    for other in checkpoints.glob("step-*"):
        if other.resolve() not in kept:
            shutil.rmtree(other)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name and plain values; the inverse is `load_optimiser`."""
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put back what `optimiser_state` took out."""
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["numbers"].items()}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = tensor
    try:
        optimiser.load_state_dict({"state": state, "param_groups": values["groups"]})
    except ValueError as error:
        raise CheckpointError(f"the saved optimiser does not fit this model ({error}); start a new run") from error


def random_state() -> dict[str, Tensor]:
    """Python's, numpy's and torch's generators of this process (and its devices) as tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    del kind, version
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.rest": torch.tensor([float(position), float(has_gauss), float(cached)], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            state[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` took out; devices that are not here any more are left alone."""
    gauss = float(state["python.gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if np.isnan(gauss) else gauss))
    position, has_gauss, cached = state["numpy.rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    for name, value in state.items():
        kind, _, index = name.partition(".")
        if kind == "cuda" and torch.cuda.is_available() and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(index))
