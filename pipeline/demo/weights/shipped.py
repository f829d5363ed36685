"""Which weights are shipped, in which architecture, and the digests they are checked against. Imports no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sak.errors import SakError, UsageError, nearest

DIRECTORY = Path(__file__).parent
LICENCE = "cc0-1.0"


@dataclass(frozen=True)
class DemoModel:
    """One shipped model: a timm architecture at small size, trained for images of `side` pixels.

    `sha256` is that of its file; `window` is the side of SamViT's windows in patches.
    """

    name: str
    architecture: str
    side: int
    sha256: str
    window: int | None = None
    width: int = 96
    depth: int = 12
    heads: int = 3

    @property
    def overrides(self) -> dict[str, int]:
        """Its size, as timm takes it."""
        sizes = {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads}
        return sizes if self.window is None else {**sizes, "window_size": self.window}


_MODELS = (
    DemoModel(
        "dino", "vit_small_patch14_dinov2", 126, "3d26e0dd406e48265274b51de7e4302db466b2a9634a29024e5b52595b686b04"
    ),
    DemoModel(
        "clip", "vit_base_patch16_clip_224", 128, "e74941c32c5d58a1582d2b17a59e361c5e5325c05249b3e79070d89129ecb64c"
    ),
    DemoModel(
        "sam", "samvit_base_patch16", 192, "73d068fc8ff70665e15d7a097757d611834f277e5bd6cb2362eff6ce12a03f19", window=4
    ),
    DemoModel("stem", "vit_small_patch16_384", 128, "6f611a36492a2408a45757b9d659da835c219e32cc9d25817df0faa559c07943"),
)
DEMO_MODELS: dict[str, DemoModel] = {model.name: model for model in _MODELS}


def demo_model(name: str) -> DemoModel:
    """A shipped model by its short name; UsageError names the nearest one."""
    if name not in DEMO_MODELS:
        raise UsageError(f"no demo model is called {name!r}{nearest(name, DEMO_MODELS)}")
    return DEMO_MODELS[name]


@dataclass(frozen=True)
class ShippedFile:
    """A weights file inside the package; checked whenever it is fetched."""

    name: str
    path: Path
    sha256: str

    def local(self) -> Path | None:
        """The file, None where the installation lacks it."""
        return self.path if self.path.is_file() else None

    def fetch(self, model: str) -> Path:
        """The file, its SHA-256 checked; SakError where it is absent or another."""
        if not self.path.is_file():
            raise SakError(f"{model}: {self.path} is missing; install the package again, or use weights random:SEED")
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SakError(
                f"{model}: {self.path} has SHA-256 {found[:12]}..., wanted {self.sha256[:12]}...; "
                "it is damaged or another file: install the package again"
            )
        return self.path


def shipped_file(name: str) -> ShippedFile:
    """The weights of a demo model."""
    return ShippedFile(name, DIRECTORY / f"{name}.safetensors", demo_model(name).sha256)
