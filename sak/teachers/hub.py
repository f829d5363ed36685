"""Published weights: which file of which repository or URL, whether it is here, and fetching it. Imports no torch."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sak.errors import SakError

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
            cached = try_to_load_from_cache(self.repository, filename)
            if isinstance(cached, str):
                return Path(cached)
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
    def path(self) -> Path:
        """Where torch.hub keeps it: $TORCH_HOME/hub/checkpoints."""
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 (may hold ~ and variables)
        return Path(os.path.expandvars(home)).expanduser() / "hub" / "checkpoints" / self.url.rsplit("/", 1)[-1]

    def local(self) -> Path | None:
        """The file in the local cache; never asks the network."""
        return self.path if self.path.is_file() else None

    def fetch(self, model: str) -> Path:
        """The cached file, else the file downloaded (its name holds the start of its SHA-256, which is checked)."""
        return self.local() or self._download(model)

    def _download(self, model: str) -> Path:
        from urllib.error import URLError

        from torch.hub import HASH_REGEX, download_url_to_file

        match = HASH_REGEX.search(self.path.name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.url, str(self.path), match.group(1) if match else None, progress=False)
        except (URLError, RuntimeError, TimeoutError) as error:
            raise SakError(
                f"{model}: {self.path} is not there and {self.url} could not be fetched ({error}); "
                f"put the file there, {OFFLINE_HINT}"
            ) from error
        return self.path
