"""Weights: where they come from, what they are called, and the SHA-256 that names them.

The identity is taken over the tower's own tensors (embeddings and all blocks; no head, final norm, neck or text
tower) by name, as float32, before any resampling. So it is the same for the same weights in another file format, in
half precision that was widened, or with another head, and it does not depend on image size or levels.
"""

import hashlib
import math
import pickle
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sak.errors import SakError, UsageError
from sak.teachers.registry import weights_available as weights_available  # for those who look for it here

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "module")
_PREFIXES = ("module.", "model.")
_POSITIONAL = ("pos", "token", "class_embedding")


class WeightsError(SakError):
    """Weights that are not there, cannot be read or do not fit."""


@dataclass(frozen=True)
class WeightsSource:
    """`pretrained`, a local file, or random numbers from a seed: exactly one of the last two may be set."""

    path: Path | None = None
    seed: int | None = None

    @property
    def is_random(self) -> bool:
        """Whether the weights are random numbers."""
        return self.seed is not None


def parse_weights(text: str | Path) -> WeightsSource:
    """Read `pretrained`, `random:SEED` or a path; UsageError for a random without a seed."""
    if text == "pretrained":
        return WeightsSource()
    if isinstance(text, str) and (text == "random" or text.startswith("random:")):
        seed = text.removeprefix("random").removeprefix(":")
        if not seed.isdecimal():
            raise UsageError(f"weights {text!r}: random weights need a seed, a whole number from 0: 'random:0'")
        return WeightsSource(seed=int(seed))
    return WeightsSource(path=Path(text).expanduser())


def read_state_dict(path: Path) -> State:
    """The tensors of a safetensors file, or of a torch file read with `weights_only`.

    Wrappers (`state_dict`, `model`) and prefixes that all keys share (`module.`, `model.`) are taken off. WeightsError
    where the file is absent, damaged, a TorchScript archive (those run code) or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; weights are 'pretrained', a .safetensors or torch file, or 'random:SEED'"
        )
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    state = _unwrap(loaded)
    strangers = [str(k) for k, value in state.items() if not (isinstance(k, str) and isinstance(value, Tensor))]
    if strangers or not state:
        held = f"{', '.join(strangers[:3])} beside tensors" if strangers else "no tensors"
        raise WeightsError(f"{path}: holds {held}; weights are a state dict, a flat mapping of names to tensors")
    return _strip_prefixes(state)


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or no safetensors file ({error}); fetch it again") from error


def _load_torch(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped and _is_torchscript(path):
        raise WeightsError(
            f"{path}: a TorchScript archive, which runs code when it is read; "
            "save its state_dict() as safetensors where you trust it, and point weights there"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # torch's own words advise to switch weights_only off
        raise WeightsError(
            f"{path}: is damaged or holds objects other than tensors, which are never loaded; fetch it again, or save "
            "its state dict alone where you trust it"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path}: cannot be read as tensors alone ({reason}); fetch it again, or save its state dict as safetensors"
        ) from error


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrap(loaded: Any) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    return loaded if isinstance(loaded, Mapping) else {}


def _strip_prefixes(state: Mapping[str, Tensor]) -> State:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def canonical(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, floats as float32: what towers hold and identities are taken from."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors by sorted name: `name|dtype|shape` and a newline, then the values, little endian."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = canonical(state[name]).numpy()
        digest.update(f"{name}|{values.dtype.name}|{'x'.join(map(str, values.shape))}\n".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def random_state(shapes: Mapping[str, torch.Size], seed: int) -> State:
    """Random weights that depend on the seed, the tensors' names and shapes alone, bit for bit on any machine.

    Not the libraries' own initialisation, under which LayerScale (1e-5) would make all levels of a DINOv2 alike:
    matrices are uniform with standard deviation 1/sqrt(fan in), embeddings 0.2, biases 0.02; norms and scales are 1.
    """
    return {name: _random_tensor(name, shape, seed) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: torch.Size, seed: int) -> Tensor:
    last = name.rsplit(".", 1)[-1]
    embedding = any(word in last for word in _POSITIONAL)
    if len(shape) == 1 and not embedding and "bias" not in last:
        return torch.ones(shape, device="cpu")
    fan_in = math.prod(shape[1:])
    deviation = 0.2 if embedding else 0.02 if len(shape) == 1 else fan_in**-0.5
    key = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    uniform = generator.random(math.prod(shape), dtype=np.float32)
    return torch.from_numpy((uniform - np.float32(0.5)) * np.float32(deviation * math.sqrt(12))).reshape(shape)


def check_state(
    state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], *, loose: Collection[str], where: str
) -> None:
    """Refuse a state dict that does not fit: missing, unexpected or misshapen tensors, the first few by name.

    Tensors named in `loose` may differ in all but their last dimension: they will be resampled.
    """
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    if missing or unexpected:
        parts = [f"{word} {_few(names)}" for word, names in (("misses", missing), ("has", unexpected)) if names]
        raise WeightsError(f"{where}: these weights are of another model: the file {' and '.join(parts)}")
    for name, shape in wanted.items():
        found = state[name].shape
        fits = name in loose and len(found) == len(shape) and found[-1] == shape[-1]
        if found != shape and not fits:
            raise WeightsError(
                f"{where}: these weights are of another model: {name} is {tuple(found)}, wanted {tuple(shape)}"
            )


def _few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
