"""The one reader of weight files: tensors by name out of safetensors or torch files, in which nothing is unpickled."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sak.errors import SakError, UsageError

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("module.", "model.")


class WeightsError(SakError):
    """Weights that are not there, cannot be read or do not fit."""


def random_seed(weights: str) -> int | None:
    """The seed of `random:SEED`, None for anything else; UsageError where the seed is no whole number from 0."""
    kind, colon, seed = weights.partition(":")
    if kind != "random":
        return None
    if not colon or not seed.isdecimal():
        raise UsageError(
            f"weights {weights!r}: random weights need a seed, a whole number from 0: random:SEED, such as 'random:0'"
        )
    return int(seed)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file read with `weights_only`, in the file's order.

    Wrappers (`model`, `state_dict`) and prefixes that all keys share (`module.`, `model.`) are taken off. WeightsError
    where the file is absent, damaged, a TorchScript archive (those run code) or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; weights are 'pretrained', a .safetensors or torch file, or 'random:SEED'"
        )
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{path}: holds a {type(loaded).__name__}, not a state dict; save the model's state_dict(), a flat mapping "
            "of names to tensors"
        )
    state = _unwrap(loaded)
    strangers = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers or not state:
        held = f"{', '.join(strangers[:3])} beside tensors" if strangers else "no tensors"
        raise WeightsError(f"{path}: holds {held}; weights are a state dict, a flat mapping of names to tensors")
    return _without_prefixes(state)


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
            "save its state_dict() as safetensors where you trust it, and name that file"
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


def _unwrap(loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        inner = loaded.get(wrapper)
        if isinstance(inner, Mapping):
            loaded = inner
    return loaded


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def fill_buffers(model: nn.Module) -> None:
    """Compute the buffers, drawn on the meta device, that no state dict holds: rotary frequencies, Swin's indices."""
    for name, module in model.named_modules():
        empty = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not empty:
            continue
        if not hasattr(module, "init_non_persistent_buffers"):
            raise SakError(f"{type(model).__name__}: no weights for the buffers {', '.join(empty)} of {name or 'it'}")
        for key in empty:
            setattr(module, key, torch.empty_like(getattr(module, key), device="cpu"))
        module.init_non_persistent_buffers()
