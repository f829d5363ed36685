"""Image towers: what every library's module builds, and the one way in which weights get into them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.teachers.hub import PublishedFile
from sak.teachers.names import ModelName
from sak.teachers.preprocess import Normalization, Size
from sak.teachers.weights import (
    State,
    WeightsSource,
    canonical,
    check_state,
    random_state,
    state_sha256,
)
from sak.weight_files import read_tensors


class Tower(nn.Module):
    """A library's image model without head, final norm or neck; its weights lie in `model`.

    `patch` is the side of a patch in pixels, `layer_norm_eps` the epsilon of the blocks' LayerNorms.
    """

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

    @abstractmethod
    def keep_blocks(self, count: int) -> None:
        """Drop the blocks after number `count`: no level needs them."""

    def shapes(self) -> dict[str, torch.Size]:
        """Name and shape of every tensor a state dict must hold."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take `state` as the weights, in place of the meta device's; tensors of dropped blocks are left out."""
        wanted = self.model.state_dict().keys()
        self.model.load_state_dict({name: state[name] for name in wanted}, assign=True)
        _fill_buffers(self.model)


def _fill_buffers(model: nn.Module) -> None:
    """Compute the buffers that no state dict holds (rotary frequencies), drawn on the meta device until now."""
    for name, module in model.named_modules():
        empty = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not empty:
            continue
        if not hasattr(module, "init_non_persistent_buffers"):
            raise SakError(f"{type(model).__name__}: no weights for the buffers {', '.join(empty)} of {name or 'it'}")
        for key in empty:
            setattr(module, key, torch.empty_like(getattr(module, key), device="cpu"))
        module.init_non_persistent_buffers()


def first_eps(block: nn.Module) -> float:
    """Epsilon of a block's first norm."""
    epsilons = (getattr(module, "eps", None) for module in block.modules())
    return next(eps for eps in epsilons if isinstance(eps, float))


@dataclass(frozen=True)
class TowerRequest:
    """What `build_teacher` asks a library's module for."""

    name: ModelName
    image_size: Size
    input_size: Size | None = None
    overrides: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """One model of one library: how it is drawn, where its weights are published, how its files are read.

    `native_size` is the size whose grid the published position embeddings have, `input_size` what the tower will see.
    `square` asks for SAM's padded input, `brings_weights` says that drawn towers hold their pretrained weights;
    `revision` goes into cache keys beside the teachers' own.
    """

    request: TowerRequest
    native_size: Size
    input_size: Size
    normalization: Normalization
    licence: str
    square: bool = False
    brings_weights: bool = False
    revision: str = ""

    def draw(self, size: Size) -> Tower:
        """The tower for inputs of `size`, on the meta device: no memory, no random numbers."""
        raise NotImplementedError

    def published(self) -> PublishedFile:
        """Where the pretrained weights are; SakError where none are published."""
        raise NotImplementedError

    def rename(self, state: State) -> State:
        """From the names in the library's files to the tower's; parts that no tower needs are left out."""
        raise NotImplementedError

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """Names of the tensors whose size follows the grid, so that a file may hold another one."""
        raise NotImplementedError

    def resample(self, state: State, tower: Tower) -> State:
        """Position embeddings brought to `tower`'s grid; all else as it is."""
        raise NotImplementedError


def realise(blueprint: Blueprint, tower: Tower, weights: WeightsSource, *, last_level: int) -> str:
    """Give a drawn tower its weights, strictly all of them, positions resampled; returns their identity.

    The identity covers all blocks; those after `last_level` are then dropped.
    """
    state = _state(blueprint, tower, weights)
    identity = state_sha256(state)
    tower.keep_blocks(last_level)
    tower.fill(blueprint.resample(state, tower))
    return identity


def _state(blueprint: Blueprint, tower: Tower, weights: WeightsSource) -> State:
    native = tower if blueprint.native_size == blueprint.input_size else blueprint.draw(blueprint.native_size)
    if weights.seed is not None:
        return random_state(native.shapes(), weights.seed)
    if weights.path is None and blueprint.brings_weights:
        return {name: canonical(tensor) for name, tensor in tower.model.state_dict().items()}
    model = blueprint.request.name.text
    path = weights.path or blueprint.published().fetch(model)
    where = f"{model} from {path}"
    state = {name: canonical(tensor) for name, tensor in blueprint.rename(read_tensors(path)).items()}
    check_state(state, native.shapes(), loose=blueprint.grid_tensors(native), where=where)
    return state
