"""Training checkpoints on disk: written whole, made visible by a rename and a link, read back, removed.

They hold all that an exact resume needs, as safetensors and JSON; nothing is ever unpickled.

checkpoints/step-00000120/   student.safetensors, student.json   the model, usable on its own
                             ema/                                the averaged model, where there is one
                             training.safetensors                optimiser
                             random-<rank>.safetensors           random generators of every rank
                             training.json                       step and the rest
checkpoints/last, best       links to one of them, moved when it is whole

A checkpoint is filled under another name and renamed, and renamed again before it is removed: one that has its name is
whole.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.storage.local import fsync_file, fsync_folder, replace_durably
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
        for path in sorted(scratch.rglob("*")):  # on the disk before the rename: a power cut may not reorder the two
            fsync_folder(path) if path.is_dir() else fsync_file(path)
        fsync_folder(scratch)
        if final.exists():
            _remove(final)
        scratch.replace(final)
        fsync_folder(checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(f"{final} cannot be written ({error}); make room, then go on with --resume") from error


def write_state(folder: Path, state: TrainingState) -> None:
    """Write the training state into a checkpoint's folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, folder / TENSORS)
    (folder / DONE).write_text(_text(state.step, state.values))


def change_values(folder: Path, **values: Any) -> None:
    """Change some of the plain values of a whole checkpoint, in one step."""
    document = _document(folder)
    replace_durably(folder / DONE, _text(document["step"], document["values"] | values).encode())


def read_state(folder: Path) -> TrainingState:
    """The training state of a checkpoint; CheckpointError where it is not whole."""
    document = _document(folder)
    return TrainingState(int(document["step"]), read_tensors(folder / TENSORS), document["values"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file; CheckpointError where they cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path.parent, error) from error


def _document(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / DONE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: format {document.get('format')!r}, this version reads {FORMAT!r}")
    return document


def _text(step: int, values: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "step": step, "values": dict(values)}, indent=1) + "\n"


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    others = sorted(path.name for path in folder.parent.glob("step-*") if path != folder)
    way = f"make {folder.parent}/last a link to {others[-1]}" if others else "there is no other, start anew"
    return CheckpointError(f"{folder} is not a whole checkpoint ({error}); {way}")


def point(checkpoints: Path, name: str, folder: Path) -> None:
    """Make the link `checkpoints/<name>` lead to `folder`, in one step."""
    scratch = checkpoints / f".{name}.link"
    try:
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(folder.name)
        scratch.replace(checkpoints / name)
        fsync_folder(checkpoints)
    except OSError as error:
        raise CheckpointError(f"{checkpoints}/{name} cannot be written ({error}); go on with --resume") from error


def remove_unused(checkpoints: Path) -> None:
    """Remove the checkpoints that no link leads to."""
    kept = {link.resolve() for link in checkpoints.iterdir() if link.is_symlink()}
    for folder in checkpoints.glob("step-*"):
        if folder.resolve() not in kept:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Under another name first: a checkpoint that is killed half-way through its removal is none any more."""
    leaving = folder.with_name(f".{folder.name}.old.part")
    folder.replace(leaving)
    shutil.rmtree(leaving)


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
    """Python's, numpy's and torch's generators of this rank (and its devices) as tensors."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.rest": torch.tensor([float(position), float(has_gauss), float(cached)], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return state | {f"cuda.{index}": torch.cuda.get_rng_state(index) for index in devices}


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


def seed_anew(seed: int, step: int, rank: int) -> None:
    """Generators that follow from the run's seed, the step and the rank, and repeat none of the earlier steps."""
    digest = sha256(f"{seed}|{step}|{rank}".encode()).digest()
    set_seed(int.from_bytes(digest[:4], "little"))
