"""Weights as state dicts: random ones, the check of a file's, and the SHA-256 that names them.

The identity is taken over the tower's own tensors (embeddings and all blocks; no head, final norm, neck or text
tower) by name, as float32, before any resampling. So it is the same for the same weights in another file format, in
half precision that was widened, or with another head, and it does not depend on image size or levels.
"""

import hashlib
import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from sak.weight_files import WeightsError as WeightsError

State = dict[str, Tensor]
_POSITIONAL = ("pos", "token", "class_embedding")


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
        given = state[name].shape
        fits = name in loose and len(given) == len(shape) and given[-1] == shape[-1]
        if given != shape and not fits:
            raise WeightsError(
                f"{where}: these weights are of another model: {name} is {tuple(given)}, wanted {tuple(shape)}"
            )


def _few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
