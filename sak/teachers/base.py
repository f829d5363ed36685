"""The teacher: a frozen tower with its input recipe, and all that a cache key must know of it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.features import FeatureMaps
from sak.teachers.preprocess import InputRecipe, Normalization, Size, check_images, check_range
from sak.teachers.tower import Tower

TEACHER_REVISION = "1"
"""Goes into every cache key: raise it when a change here changes features, and only then."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TeacherFacts:
    """What decides a teacher's features, besides the weights' values and the images."""

    name: str
    model: str
    licence: str
    levels: tuple[int, ...]
    image_size: Size
    input_size: Size
    normalization: Normalization
    precision: str
    sam_padding: str | None
    is_random: bool
    revision: str = TEACHER_REVISION


class Teacher(nn.Module):
    """A frozen teacher, always in eval mode: images in [0, 1] -> the raw outputs of its blocks at four levels.

    Patch tokens only, no final norm, no neck (METHOD: the distillation targets). With `bf16` and `fp16` the forward
    runs under autocast: weights and the residual stream stay float32, since raw ViT features have a few huge channels
    that a half-precision stream would round; `fp32` switches a surrounding autocast off. Outputs are float32, or
    float64 after `.double()`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: Tower, facts: TeacherFacts, recipe: InputRecipe, weights_sha256: str | None) -> None:
        super().__init__()
        self.tower = tower
        self.facts = facts
        self.recipe = recipe
        self._weights_sha256 = weights_sha256
        self._checked_range = False
        for name in ("mean", "std"):
            values = torch.tensor(getattr(facts.normalization, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    @property
    def name(self) -> str:
        """What specs, columns and reports call it."""
        return self.facts.name

    @property
    def model(self) -> str:
        """The full model string, `timm/vit_base_patch14_dinov2.lvd142m`."""
        return self.facts.model

    @property
    def levels(self) -> tuple[int, ...]:
        """The tapped blocks, by number from 1."""
        return self.facts.levels

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation applied to the images."""
        return self.facts.normalization

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.facts.licence

    @property
    def is_random(self) -> bool:
        """Whether the weights are random numbers: every listing, plot and report must say so."""
        return self.facts.is_random

    @property
    def width(self) -> int:
        """Channels of every level."""
        return self.tower.width

    @property
    def depth(self) -> int:
        """Blocks of the published model, whether or not a level needs the last ones."""
        return self.tower.depth

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of the blocks' LayerNorms, as the library that runs the teacher has it."""
        return self.tower.layer_norm_eps

    @property
    def weights_sha256(self) -> str:
        """Identity of the weights, see `sak.teachers.weights`; SakError on the meta device, where there are none."""
        if self._weights_sha256 is None:
            raise SakError(f"{self.name}: built on the meta device, so it has no weights to identify")
        return self._weights_sha256

    @property
    def parameter_count(self) -> int:
        """Parameters held: embeddings, and the blocks up to the last level."""
        return sum(parameter.numel() for parameter in self.tower.parameters())

    def grid(self, size: Size | None = None) -> Size:
        """(rows, columns) of the maps for images of `size` (height, width); of the size it was built for."""
        return self.recipe.grid(size or self.facts.image_size)

    def identity(self) -> dict[str, object]:
        """Everything that decides the features, as JSON: what a cache key hashes."""
        facts = self.facts
        return {
            "model": facts.model,
            "weights_sha256": self.weights_sha256,
            "levels": list(facts.levels),
            "image_size": list(facts.image_size),
            "input_size": list(facts.input_size),
            "normalization": {"mean": list(facts.normalization.mean), "std": list(facts.normalization.std)},
            "precision": facts.precision,
            "sam_padding": facts.sam_padding,
            "revision": facts.revision,
        }

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever a student around it does."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> FeatureMaps:
        """(B, 3, H, W) in [0, 1] -> FeatureMaps; UsageError for another shape, size, dtype or range.

        The range is read on the CPU every time, on an accelerator for the first batch alone: it would wait for it.
        """
        check_images(images)
        if images.device.type == "cpu" or not self._checked_range:
            check_range(images)
            self._checked_range = True
        return self.features((images.to(self.mean.dtype) - self.mean) / self.std)

    @torch.no_grad()
    def features(self, normalised: Tensor) -> FeatureMaps:
        """As `forward`, from images (B, 3, H, W) that are normalised already."""
        size = (normalised.shape[-2], normalised.shape[-1])
        inputs = self.recipe.prepare(normalised)
        dtype = PRECISIONS[self.facts.precision]
        low = dtype != torch.float32
        with torch.autocast(inputs.device.type, dtype=dtype if low else None, enabled=low):
            maps = self.tower(inputs, self.levels)
        rows, columns = self.recipe.grid(size)
        return FeatureMaps(self.levels, tuple(map_[..., :rows, :columns].to(self.mean.dtype) for map_ in maps))

    def extra_repr(self) -> str:
        """Name, model and levels."""
        random = ", RANDOM weights" if self.is_random else ""
        return f"{self.name}: {self.facts.model}, levels {self.levels}{random}"
