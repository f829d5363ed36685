"""Teachers from timm: plain ViTs (DINOv2, CLIP, SigLIP, DeiT III, supervised), EVA (DINOv3) and SAM's."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import get_deprecated_models, get_pretrained_cfg, list_pretrained, model_entrypoint
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.teachers.positions import SamBlueprint, fuse_attention, grid_of, resample_tokens
from sak.teachers.preprocess import Normalization
from sak.teachers.recipe import Size, TeacherRecipe
from sak.teachers.registry import TIMM_FILES, HubFiles, PublishedFile, UrlFile
from sak.teachers.teacher import Blueprint, Tower, first_eps
from sak.teachers.weights import State, WeightsError

OVERRIDES = ("embed_dim", "depth", "num_heads", "reg_tokens", "window_size")
_MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_sam")
_UNUSED = ("head", "head_dist", "norm", "fc_norm", "attn_pool", "neck", "pre_logits", "mask_token")
_QUICKGELU = {"vit_base_patch16_clip_224.dfn2b": "open_clip/ViT-B-16-quickgelu/dfn2b"}  # timm's table lacks the note


class TimmTower(Tower):
    """A timm ViT; `forward_intermediates` leaves out class, register and distillation tokens and the final norm."""

    def forward(self, images: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """See Tower."""
        indices = [level - 1 for level in levels]
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=indices, stop_early=True, intermediates_only=True
        )
        return maps


@dataclass(frozen=True, kw_only=True)
class TimmBlueprint(Blueprint):
    """A model of timm; `architecture` is its name there, without a tag."""

    architecture: str

    def draw(self, size: Size) -> TimmTower:
        """See Blueprint."""
        module = _module(self.architecture)
        options: dict[str, Any] = {} if self.square else {"dynamic_img_size": False}
        if module in ("vision_transformer", "deit"):  # the others have no way to leave it out
            options["weight_init"] = "skip"
        with torch.device("meta"):
            model = timm.create_model(
                self.architecture, num_classes=0, img_size=size, **options, **self.recipe.overrides
            )
        if not isinstance(model.patch_embed, PatchEmbed):
            raise UsageError(f"timm/{self.architecture} makes its patches with a CNN; teachers are plain ViTs")
        model.prune_intermediate_layers([len(model.blocks) - 1], prune_norm=True, prune_head=True)
        return TimmTower(
            model,
            width=model.embed_dim,
            depth=len(model.blocks),
            patch=model.patch_embed.patch_size[0],
            layer_norm_eps=first_eps(model.blocks[0]),
        )

    def rename(self, state: State) -> State:
        """By timm's own filter, which knows the original files too; it is kept from resampling anything."""
        model = self.draw(self.native_size).model
        self._check_patches(state, model.patch_embed.patch_size)
        model.pos_embed = None
        module = sys.modules[model_entrypoint(self.architecture).__module__]
        rename = module.checkpoint_filter_fn
        options = {"adapt_layer_scale": True} if "adapt_layer_scale" in signature(rename).parameters else {}
        renamed = rename(self._without_zero_biases(state, model), model, **options)
        return {key: value for key, value in renamed.items() if key.split(".", 1)[0] not in _UNUSED}

    def _check_patches(self, state: State, patch: Size) -> None:
        for key, value in state.items():
            kernel = tuple(value.shape[-2:])
            if key.endswith(("patch_embed.proj.weight", "visual.conv1.weight")) and value.ndim == 4 and kernel != patch:
                raise WeightsError(
                    f"{self.recipe.model}: these weights are of another model: {key} has patches of "
                    f"{kernel[0]}x{kernel[1]}, wanted {patch[0]}x{patch[1]}"
                )

    def _without_zero_biases(self, state: State, model: nn.Module) -> State:
        """DINOv3's own files may hold all-zero attention biases that timm's model lacks; others are refused."""
        if "storage_tokens" not in state or any(name.endswith("q_bias") for name, _ in model.named_parameters()):
            return state
        biases = {key: value for key, value in state.items() if key.endswith("attn.qkv.bias")}
        for key, value in biases.items():
            query, _, values = value.chunk(3)  # the middle third is masked: keys have no bias
            if query.any() or values.any():
                raise WeightsError(
                    f"{self.recipe.model}: {key} is not zero and this model has no attention biases; "
                    f"use timm/{self.architecture}_qkvb"
                )
        return {key: value for key, value in state.items() if key not in biases}

    def grid_tensors(self, tower: Tower) -> tuple[str, ...]:
        """See Blueprint."""
        return tuple(name for name in ("pos_embed",) if name in tower.shapes())

    def resample(self, state: State, tower: Tower) -> State:
        """See Blueprint."""
        if "pos_embed" not in state:  # rotary positions alone: DINOv3
            return state
        model = tower.model
        embedding = state["pos_embed"]
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        native = (self.native_size[0] // tower.patch, self.native_size[1] // tower.patch)
        old = grid_of(embedding.shape[1] - prefix, native, self.recipe.model)
        new = model.patch_embed.grid_size
        return {**state, "pos_embed": resample_tokens(embedding, prefix=prefix, old=old, new=new)}


@dataclass(frozen=True, kw_only=True)
class TimmSamBlueprint(SamBlueprint, TimmBlueprint):
    """timm's SamViT."""

    def draw(self, size: Size) -> TimmTower:
        """See Blueprint."""
        tower = super().draw(size)
        fuse_attention(tower.model.blocks)
        return tower


def timm_blueprint(recipe: TeacherRecipe, image_size: Size) -> TimmBlueprint:
    """The blueprint of `timm/<model>.<tag>`; UsageError for what timm does not have or no teacher can be."""
    check_architecture(recipe.architecture, recipe.model)
    config = _pretrained_config(recipe)
    _refuse_wrong_activation(recipe, config)
    native = (config.input_size[-2], config.input_size[-1])
    square = recipe.architecture.startswith("samvit")
    return (TimmSamBlueprint if square else TimmBlueprint)(
        recipe=recipe,
        image_size=image_size,
        native_size=native,
        input_size=recipe.input_size or (native if square else image_size),
        normalization=Normalization(tuple(config.mean), tuple(config.std)),
        licence=config.license or "unknown",
        square=square,
        architecture=recipe.architecture,
        source=_source(config),
    )


def _module(architecture: str) -> str:
    return model_entrypoint(architecture).__module__.rsplit(".", 1)[-1]


def check_architecture(architecture: str, text: str) -> None:
    """UsageError unless timm has this architecture and it is one that can be a teacher."""
    current = get_deprecated_models().get(architecture)
    if current:
        raise UsageError(f"{text}: timm calls {architecture!r} {current} today")
    if not timm.is_model(architecture):
        raise UsageError(f"{text}: timm has no model {architecture!r}{nearest(architecture, timm.list_models())}")
    if _module(architecture) not in _MODULES or "radio" in architecture:
        raise UsageError(
            f"{text}: {architecture} is no plain ViT; teachers are timm's ViT, DeiT, EVA, DINOv3 and SamViT models, "
            "others go through custom:<module>:<builder>"
        )


def check_tag(recipe: TeacherRecipe, tags: Sequence[str]) -> None:
    """UsageError unless the recipe has one of these weights tags, or none where there are none."""
    if not recipe.tag and tags:
        raise UsageError(f"{recipe.model}: the weights tag must be spelled out; known: {', '.join(tags)}")
    if recipe.tag and recipe.tag not in tags:
        known = nearest(recipe.tag, tags)
        raise UsageError(f"{recipe.model}: {recipe.architecture} has no weights {recipe.tag!r}{known}")


def _pretrained_config(recipe: TeacherRecipe) -> Any:
    architecture, tag = recipe.architecture, recipe.tag
    check_tag(recipe, [full.partition(".")[2] for full in list_pretrained(f"{architecture}.*")])
    return get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)


def _refuse_wrong_activation(recipe: TeacherRecipe, config: Any) -> None:
    """OpenAI's and other weights need the quickgelu models; timm would run them with GELU and say nothing."""
    other = _QUICKGELU.get(f"{recipe.architecture}.{recipe.tag}")
    if "quickgelu" not in recipe.architecture and any("quickgelu" in note.lower() for note in config.notes or ()):
        other = f"timm/{recipe.architecture.replace('_clip_', '_clip_quickgelu_')}.{recipe.tag}"
    if other:
        raise UsageError(f"{recipe.model}: these weights were trained with QuickGELU, this model has GELU; use {other}")


def _source(config: Any) -> PublishedFile | None:
    if config.hf_hub_id:
        return HubFiles(config.hf_hub_id, (config.hf_hub_filename,) if config.hf_hub_filename else TIMM_FILES)
    return UrlFile(config.url) if isinstance(config.url, str) and config.url and not config.custom_load else None
