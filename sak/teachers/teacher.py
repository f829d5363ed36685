"""The teacher: a frozen tower with the way its input is made; and what every library's module builds for it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.features import FeatureMaps
from sak.teachers.preprocess import IMAGENET, Normalization, Preprocessing, check_images, check_range
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.registry import PublishedFile
from sak.teachers.weights import State, canonical, check_state, random_state, state_sha256
from sak.weight_files import WeightsError, fill_buffers, random_seed, read_tensors

TEACHER_REVISION = "1"
"""Goes into every cache key: raise it when a change here changes features, and only then."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tower(nn.Module):
    """A library's image model without head, final norm or neck; its weights lie in `model`.

    `patch` is the side of a patch in pixels, `layer_norm_eps` the epsilon of the blocks' LayerNorms.
    """

    model: Any

    def __init__(self, model: nn.Module, *, width: int, depth: int, patch: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.model = model
        self.width = width
        self.depth = depth
        self.patch = patch
        self.layer_norm_eps = layer_norm_eps

    @abstractmethod
    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The blocks' raw outputs: (B, 3, H, W) -> per level (B, width, H / patch, W / patch), patch tokens only."""

    def keep_blocks(self, count: int) -> None:
        """Drop the blocks after number `count`: no level needs them."""
        self.model.blocks = self.model.blocks[:count]

    def shapes(self) -> dict[str, torch.Size]:
        """Name and shape of every tensor a state dict must hold."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take `state` as the weights, in place of the meta device's; tensors of dropped blocks are left out."""
        wanted = self.model.state_dict().keys()
        self.model.load_state_dict({name: state[name] for name in wanted}, assign=True)
        fill_buffers(self.model)


def first_eps(block: nn.Module) -> float:
    """Epsilon of a block's first norm."""
    epsilons = (getattr(module, "eps", None) for module in block.modules())
    return next(eps for eps in epsilons if isinstance(eps, float))


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """One model of one library: how it is drawn, where its weights are published, how its files are read.

    `recipe` and `image_size` are what was asked for. `native_size` is the size whose grid the published position
    embeddings have, `input_size` what the tower will see.
    `square` asks for SAM's padded input, `source` is where the pretrained weights are, `brings_weights` says that drawn
    towers hold them; `revision` goes into cache keys beside the teachers' own.
    """

    recipe: TeacherRecipe
    image_size: Size
    native_size: Size
    input_size: Size
    normalization: Normalization
    licence: str
    square: bool = False
    source: PublishedFile | None = None
    brings_weights: bool = False
    revision: str = ""

    def draw(self, size: Size) -> Tower:
        """The tower for inputs of `size`, on the meta device: no memory, no random numbers."""
        raise NotImplementedError

    def published(self) -> PublishedFile:
        """Where the pretrained weights are; WeightsError where none are published."""
        if self.source is None:
            raise WeightsError(f"{self.recipe.model} has no published weights; pass weights=FILE")
        return self.source

    def rename(self, state: State) -> State:
        """From the names in the library's files to the tower's; parts that no tower needs are left out."""
        return state

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """Names of the tensors whose size follows the grid, so that a file may hold another one."""
        del tower
        return ()

    def resample(self, state: State, tower: Tower) -> State:
        """Position embeddings brought to `tower`'s grid; all else as it is."""
        del tower
        return state


def realise(blueprint: Blueprint, tower: Tower, *, last_level: int) -> str:
    """Give a drawn tower the weights of its recipe, strictly all of them, positions resampled; returns their identity.

    The identity covers all blocks; those after `last_level` are then dropped.
    """
    state = _state(blueprint, tower)
    identity = state_sha256(state)
    tower.keep_blocks(last_level)
    tower.fill(blueprint.resample(state, tower))
    return identity


def _state(blueprint: Blueprint, tower: Tower) -> State:
    model, weights = blueprint.recipe.model, blueprint.recipe.weights
    native = tower if blueprint.native_size == blueprint.input_size else blueprint.draw(blueprint.native_size)
    seed = random_seed(weights)
    if seed is not None:
        return random_state(native.shapes(), seed)
    if weights == "pretrained" and blueprint.brings_weights:
        return {name: canonical(tensor) for name, tensor in tower.model.state_dict().items()}
    path = blueprint.published().fetch(model) if weights == "pretrained" else Path(weights).expanduser()
    where = f"{model} from {path}"
    state = {name: canonical(tensor) for name, tensor in blueprint.rename(read_tensors(path)).items()}
    check_state(state, native.shapes(), loose=blueprint.grid_tensors(native), where=where)
    return state


class Teacher(nn.Module):
    """A frozen teacher, always in eval mode: images in [0, 1] -> the raw outputs of its blocks at four levels.

    Patch tokens only, no final norm, no neck (METHOD: the distillation targets). With `bf16` and `fp16` the forward
    runs under autocast: weights and the residual stream stay float32, since raw ViT features have a few huge channels
    that a half-precision stream would round; `fp32` switches a surrounding autocast off. Outputs are float32, or
    float64 after `.double()`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: Tower, blueprint: Blueprint, recipe: TeacherRecipe, preprocessing: Preprocessing) -> None:
        """`recipe` as `build_teacher` wrote it out: levels, revision, and off the meta device the weights' identity."""
        super().__init__()
        self.tower = tower
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.image_size, self.input_size = blueprint.image_size, blueprint.input_size
        self.normalization = IMAGENET if recipe.normalization == "imagenet" else blueprint.normalization
        self.licence = blueprint.licence
        self._checked_range = False
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.normalization, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    @property
    def name(self) -> str:
        """What specs, columns and reports call it."""
        return self.recipe.name

    @property
    def model(self) -> str:
        """The full model string, `timm/vit_base_patch14_dinov2.lvd142m`."""
        return self.recipe.model

    @property
    def levels(self) -> tuple[int, ...]:
        """The tapped blocks, by number from 1."""
        return self.recipe.levels or ()

    @property
    def is_random(self) -> bool:
        """Whether the weights are random numbers: every listing, plot and report must say so."""
        return self.recipe.is_random

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
        if self.recipe.weights_sha256 is None:
            raise SakError(f"{self.name}: built on the meta device, so it has no weights to identify")
        return self.recipe.weights_sha256

    @property
    def parameter_count(self) -> int:
        """Parameters held: embeddings, and the blocks up to the last level."""
        return sum(parameter.numel() for parameter in self.tower.parameters())

    def grid(self, size: Size | None = None) -> Size:
        """(rows, columns) of the maps for images of `size` (height, width); of the size it was built for."""
        return self.preprocessing.grid(size or self.image_size)

    def identity(self) -> dict[str, object]:
        """Everything that decides the features, as JSON: what a cache key hashes."""
        recipe, normalization = self.recipe, self.normalization
        return {
            "model": recipe.model,
            "weights_sha256": self.weights_sha256,
            "levels": list(self.levels),
            "image_size": list(self.image_size),
            "input_size": list(self.input_size),
            "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
            "precision": recipe.precision,
            "sam_padding": recipe.sam_padding,
            "revision": recipe.revision,
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
        inputs = self.preprocessing.prepare(normalised)
        dtype = PRECISIONS[self.recipe.precision]
        low = dtype != torch.float32
        with torch.autocast(inputs.device.type, dtype=dtype if low else None, enabled=low):
            maps = self.tower(inputs, self.levels)
        rows, columns = self.preprocessing.grid(size)
        return FeatureMaps(self.levels, tuple(map_[..., :rows, :columns].to(self.mean.dtype) for map_ in maps))

    def from_imagenet(self, images: Tensor) -> FeatureMaps:
        """The levels for images (B, 3, H, W) that have ImageNet's normalisation, as a student's input has.

        A teacher of that normalisation takes them as they are (published code); another one has it exchanged for its
        own.
        """
        if self.normalization == IMAGENET:
            return self.features(images)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        return self.features(((images * std + mean) - self.mean) / self.std)

    def extra_repr(self) -> str:
        """Name, model and levels."""
        random = ", RANDOM weights" if self.is_random else ""
        return f"{self.name}: {self.model}, levels {self.levels}{random}"
