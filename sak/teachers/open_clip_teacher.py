"""Teachers from open_clip: its vision towers, without the text tower."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.teachers.positions import grid_of, resample_tokens
from sak.teachers.preprocess import Normalization
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.registry import OPEN_CLIP_FILES, HubFiles, PublishedFile, UrlFile
from sak.teachers.teacher import Blueprint, Tower, first_eps
from sak.teachers.timm_teacher import TimmBlueprint, check_architecture, check_tag
from sak.teachers.weights import State

OVERRIDES = ("embed_dim", "depth", "num_heads")
_UNUSED = ("ln_post", "proj", "attn_pool", "attn_pool_contrastive")
_OPENAI = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class OpenClipTower(Tower):
    """open_clip's own VisionTransformer; `forward_intermediates` leaves out the class token and the final norm."""

    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """See Tower."""
        indices = [level - 1 for level in levels]
        taps = self.model.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)
        maps: list[Tensor] = taps["image_intermediates"]
        return maps

    def keep_blocks(self, count: int) -> None:
        """See Tower."""
        self.model.transformer.resblocks = self.model.transformer.resblocks[:count]


@dataclass(frozen=True, kw_only=True)
class OpenClipBlueprint(Blueprint):
    """A model whose vision tower is open_clip's own VisionTransformer."""

    vision: CLIPVisionCfg
    quick_gelu: bool

    def draw(self, size: Size) -> OpenClipTower:
        """See Blueprint."""
        with torch.device("meta"):
            model = _build_vision_tower(self.vision.width, replace(self.vision, image_size=size), self.quick_gelu)
        model.ln_post, model.proj, model.attn_pool = nn.Identity(), None, None
        return OpenClipTower(
            model,
            width=self.vision.width,
            depth=len(model.transformer.resblocks),
            patch=model.patch_size[0],
            layer_norm_eps=first_eps(model.transformer.resblocks[0]),
        )

    def rename(self, state: State) -> State:
        """The `visual.` part of a whole model, or a file that holds the vision tower alone."""
        visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        return {key: value for key, value in (visual or state).items() if key.split(".", 1)[0] not in _UNUSED}

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """See Blueprint."""
        del tower
        return ("positional_embedding",)

    def resample(self, state: State, tower: Tower) -> State:
        """See Blueprint."""
        embedding = state["positional_embedding"]
        native = (self.native_size[0] // tower.patch, self.native_size[1] // tower.patch)
        old = grid_of(embedding.shape[0] - 1, native, self.recipe.model)
        resampled = resample_tokens(embedding[None], prefix=1, old=old, new=tower.model.grid_size)[0]
        return {**state, "positional_embedding": resampled}


def open_clip_blueprint(recipe: TeacherRecipe, image_size: Size) -> Blueprint:
    """The blueprint of `open_clip/<arch>/<tag>`; UsageError for what open_clip does not have or no teacher can be."""
    config = _model_config(recipe)
    pretrained = _pretrained_config(recipe, config)
    vision = CLIPVisionCfg(**config["vision_cfg"])
    common: dict[str, Any] = {
        "recipe": recipe,
        "image_size": image_size,
        "input_size": recipe.input_size or image_size,
        "native_size": _pair(vision.image_size),
        "normalization": _normalization(pretrained),
        "licence": "unknown",
        "source": _source(pretrained),
    }
    if vision.timm_model_name:
        check_architecture(vision.timm_model_name, recipe.model)
        return TimmBlueprint(architecture=vision.timm_model_name, **common)
    if not isinstance(vision.layers, int):
        raise UsageError(f"{recipe.model}: {recipe.architecture} is a ResNet; teachers are plain ViTs")
    quick_gelu = bool(config.get("quick_gelu"))
    return OpenClipBlueprint(vision=_sized(vision, recipe.overrides), quick_gelu=quick_gelu, **common)


def _model_config(recipe: TeacherRecipe) -> dict[str, Any]:
    known = open_clip.list_models()
    if recipe.architecture not in known:
        raise UsageError(
            f"{recipe.model}: open_clip has no model {recipe.architecture!r}{nearest(recipe.architecture, known)}"
        )
    return open_clip.get_model_config(recipe.architecture)


def _pretrained_config(recipe: TeacherRecipe, config: dict[str, Any]) -> dict[str, Any]:
    """What open_clip says of a tag; a tag trained with QuickGELU is refused for an architecture without it."""
    check_tag(recipe, list_pretrained_tags_by_model(recipe.architecture))
    pretrained = get_pretrained_cfg(recipe.architecture, recipe.tag) if recipe.tag else {}
    if pretrained.get("quick_gelu") and not config.get("quick_gelu"):
        raise UsageError(
            f"{recipe.model}: these weights were trained with QuickGELU, this model has GELU; "
            f"use open_clip/{recipe.architecture}-quickgelu/{recipe.tag}"
        )
    return pretrained


def _normalization(pretrained: dict[str, Any]) -> Normalization:
    if "mean" not in pretrained or "std" not in pretrained:
        return _OPENAI
    return Normalization(tuple(pretrained["mean"]), tuple(pretrained["std"]))


def _pair(size: int | tuple[int, int]) -> Size:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _sized(vision: CLIPVisionCfg, overrides: Mapping[str, int]) -> CLIPVisionCfg:
    """The vision tower's sizes with the overrides, under timm's names for them."""
    width = overrides.get("embed_dim", vision.width)
    heads = overrides.get("num_heads", vision.width // vision.head_width)
    return replace(vision, width=width, layers=overrides.get("depth", vision.layers), head_width=width // heads)


def _source(pretrained: dict[str, Any]) -> PublishedFile | None:
    """open_clip writes `owner/name/file`, or `owner/name/` for its default files."""
    repository, _, filename = pretrained.get("hf_hub", "").rpartition("/")
    if repository and filename:
        stem = filename.rsplit(".", 1)[0]
        return HubFiles(repository, (f"{stem}.safetensors", filename))
    if repository:
        return HubFiles(repository, OPEN_CLIP_FILES)
    return UrlFile(pretrained["url"]) if pretrained.get("url") else None
