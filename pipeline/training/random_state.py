"""Random generators of a process: out as tensors, back in, and new ones where a run goes on with other processes."""

import random
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor


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


def seed_anew(seed: int, step: int, process: int) -> None:
    """Generators that follow from the run's seed, the step and the process, and repeat none of the earlier steps."""
    digest = sha256(f"{seed}|{step}|{process}".encode()).digest()
    set_seed(int.from_bytes(digest[:4], "little"))
