"""Weights as state dicts: random ones, the check of a file's, and the SHA-256 that names them.

The identity is taken over the tower's own tensors (embeddings and all blocks; no head, final norm, neck or text
tower) by name, as float32, before any resampling. So it is the same for the same weights in another file format, in
half precision that was widened, or with another head, and it does not depend on image size or levels.
"""

import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sak.errors import SakError
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
        found = state[name].shape
        fits = name in loose and len(found) == len(shape) and found[-1] == shape[-1]
        if found != shape and not fits:
            raise WeightsError(
                f"{where}: these weights are of another model: {name} is {tuple(found)}, wanted {tuple(shape)}"
            )


def _few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# Published weights: which file of which place, whether it is here, and fetching it. Imports no torch.

TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SAM_URLS = {
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "vit_h": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
}
OFFLINE_HINT = "or pass weights=FILE, or weights='random:SEED' for a test"


class PublishedFile(Protocol):
    """Where weights are published: on the hub, behind a URL, in an installed package."""

    def local(self) -> Path | None:
        """The file if it is on this machine; never asks the network."""

    def fetch(self, model: str) -> Path:
        """The file, downloaded if need be; SakError, which names `model`, where it cannot be had."""


@contextmanager
def _without_warnings(library: str) -> Iterator[None]:
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class HubFiles:
    """Files of a Hugging Face repository, the preferred first; one of them holds the weights."""

    repository: str
    filenames: tuple[str, ...]

    def local(self) -> Path | None:
        """The file in the local cache (HF_HOME, HF_HUB_CACHE); never asks the network."""
        from huggingface_hub import try_to_load_from_cache

        for filename in self.filenames:
            found = try_to_load_from_cache(self.repository, filename)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch(self, model: str) -> Path:
        """The cached file, else the file downloaded; SakError where neither can be had."""
        return self.local() or self._download(model)

    def _download(self, model: str) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        reason = f"it has none of {', '.join(self.filenames)}"
        for filename in self.filenames:
            try:
                with _without_warnings("huggingface_hub"):  # a pair for every attempt; ours is one line
                    return Path(hf_hub_download(self.repository, filename))
            except LocalEntryNotFoundError:  # also an EntryNotFoundError, but the network is what is missing
                reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
                break
            except EntryNotFoundError:
                continue
            except HfHubHTTPError as error:
                reason = str(error).strip().splitlines()[0]
                break
        raise SakError(
            f"{model}: weights of {self.repository} are not in {constants.HF_HUB_CACHE} and could not be fetched "
            f"({reason}); run `hf download {self.repository}` where there is a network, {OFFLINE_HINT}"
        )


@dataclass(frozen=True)
class UrlFile:
    """One file behind a URL, kept where torch.hub keeps checkpoints."""

    url: str

    @property
    def place(self) -> Path:
        """Where torch.hub keeps it: $TORCH_HOME/hub/checkpoints."""
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 (may hold ~ and variables)
        return Path(os.path.expandvars(home)).expanduser() / "hub" / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def local(self) -> Path | None:
        """The file in the local cache; never asks the network."""
        return self.place if self.place.is_file() else None

    def fetch(self, model: str) -> Path:
        """The cached file, else the file downloaded (its name holds the start of its SHA-256, which is checked)."""
        return self.local() or self._download(model)

    def _download(self, model: str) -> Path:
        from urllib.error import URLError

        from torch.hub import HASH_REGEX, download_url_to_file

        match = HASH_REGEX.search(self.place.name)
        self.place.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.url, str(self.place), match.group(1) if match else None, progress=False)
        except (URLError, RuntimeError, TimeoutError) as error:
            raise SakError(
                f"{model}: {self.place} is not there and {self.url} could not be fetched ({error}); "
                f"put the file there, {OFFLINE_HINT}"
            ) from error
        return self.place
