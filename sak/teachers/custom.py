"""Teachers of one's own: `custom:<module>:<builder>`.

The builder is called as `builder(image_size=(height, width))` and returns an nn.Module that is called as
`module(images, levels)` with normalised images (B, 3, H, W) and block numbers from 1, and returns one map
(B, width, H / patch_size, W / patch_size) per level. It has the integers `width`, `depth` and `patch_size`, and may
have `layer_norm_eps`, `licence`, and `mean` and `std` for `normalization: native`. With weights `pretrained` it comes
with its own; a file or `random:SEED` fill its state dict. Its source file is hashed into cache keys.
"""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sak.errors import SakError, UsageError
from sak.teachers.preprocess import IMAGENET, Normalization
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.teacher import Blueprint, Tower

OVERRIDES: tuple[str, ...] = ()
_NEEDED = ("width", "depth", "patch_size")


class CustomTower(Tower):
    """A builder's module; it decides by itself which blocks it runs."""

    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """See Tower."""
        maps = list(self.model(images, levels))
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        wanted = [(images.shape[0], self.width, *grid)] * len(levels)
        if [tuple(map_.shape) for map_ in maps] != wanted:
            raise SakError(
                f"custom teacher {type(self.model).__name__}: wanted {len(levels)} maps {wanted[0]}, "
                f"got {[tuple(map_.shape) for map_ in maps]}"
            )
        return maps

    def keep_blocks(self, count: int) -> None:
        """All stay: a builder's blocks have no agreed name."""
        del count


@dataclass(frozen=True, kw_only=True)
class CustomBlueprint(Blueprint):
    """What a builder made."""

    module: Any

    def draw(self, size: Size) -> CustomTower:
        """The builder's module itself, wherever it lies; it was called once, with the size that is wanted."""
        del size
        module = self.module
        eps = float(getattr(module, "layer_norm_eps", 0.0))
        return CustomTower(module, width=module.width, depth=module.depth, patch=module.patch_size, layer_norm_eps=eps)


def custom_blueprint(recipe: TeacherRecipe, image_size: Size) -> CustomBlueprint:
    """Call the builder of `custom:<module>:<builder>`; UsageError where there is none, or it returns something else."""
    builder = _builder(recipe)
    size = recipe.input_size or image_size
    module: Any = builder(image_size=size)
    absent = [attribute for attribute in _NEEDED if not isinstance(getattr(module, attribute, None), int)]
    if absent or not callable(getattr(module, "state_dict", None)):
        raise UsageError(
            f"{recipe.model}: the builder must return an nn.Module with the integers {', '.join(_NEEDED)}; "
            f"got a {type(module).__name__} without {', '.join(absent) or 'that class'}"
        )
    own = hasattr(module, "mean") and hasattr(module, "std")
    return CustomBlueprint(
        recipe=recipe,
        image_size=image_size,
        native_size=size,
        input_size=size,
        normalization=Normalization(tuple(module.mean), tuple(module.std)) if own else IMAGENET,
        licence=str(getattr(module, "licence", "unknown")),
        revision=_source_sha256(builder, recipe.model),
        brings_weights=True,
        module=module,
    )


def _builder(recipe: TeacherRecipe) -> Callable[..., nn.Module]:
    try:
        module = import_module(recipe.architecture)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{recipe.model}: {error}; the module must be importable, on PYTHONPATH or installed"
        ) from error
    builder = getattr(module, recipe.tag, None)
    if not callable(builder):
        raise UsageError(f"{recipe.model}: {recipe.architecture} has no function {recipe.tag!r}")
    return builder


def _source_sha256(builder: Callable[..., nn.Module], model: str) -> str:
    path = inspect.getsourcefile(builder)
    if path is None:
        raise UsageError(f"{model}: the builder has no source file, and cache keys hash it; write it in a module")
    return f"custom-{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
