"""Weights files of RADIO and Theia in the names that a timm ViT has."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from timm.models import vision_transformer
from torch import Tensor

from sak.errors import SakError

_RADIO = "radio_model."
_THEIA = re.compile(r"(?:.*\.)?(?:embeddings\.(.+)|encoder\.layer\.(\d+)\.(.+)\.(weight|bias))")
_THEIA_MARK = "embeddings.patch_embeddings.projection.weight"
_THEIA_EMBEDDINGS = {
    "cls_token": "cls_token",
    "position_embeddings": "pos_embed",
    "patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "patch_embeddings.projection.bias": "patch_embed.proj.bias",
}
_THEIA_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_THEIA_UNUSED = ("translator.", "model.layernorm.", "model.pooler.")

THEIA: dict[str, str] = {
    f"theia_{size}_patch16_224.cdiv": f"theaiinstitute/theia-{size}-patch16-224-cdiv"
    for size in ("tiny", "small", "base")
}
"""Stem -> repository on the Hugging Face hub, from whose local cache or network `pretrained` comes."""


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under timm's names: RADIO's own files by timm's filter, Theia's (transformers' ViT) by a table.

    Others are returned as they are. RADIO's position table (128 x 128) keeps its size here. Theia's translators to its
    teachers, and the final norm, are left out; its LayerNorms have eps 1e-12, the stem's 1e-6.
    """
    if any(key.startswith(_RADIO) for key in state):
        return vision_transformer._convert_radio(dict(state))
    if any(key.endswith(_THEIA_MARK) for key in state):
        return _from_theia(state)
    return dict(state)


def theia_file(name: str) -> Path:
    """The weights file of a Theia stem, fetched once; `SakError` where it is neither here nor to be had."""
    try:
        return Path(hf_hub_download(THEIA[name], "model.safetensors"))
    except OSError as error:
        raise SakError(
            f"weights of {name} are neither in the Hugging Face cache nor to be had ({str(error).splitlines()[0]}); "
            f"fetch model.safetensors of {THEIA[name]} once with a network, or give its file as weights"
        ) from error


def _from_theia(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed_state: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = None if "translator." in key else _THEIA.fullmatch(key)
        if match is None:
            if not any(unused in key for unused in _THEIA_UNUSED):
                renamed_state[key] = tensor  # the caller names it as unknown
            continue
        embedding, number, module, leaf = match.groups()
        if embedding is not None:
            renamed_state[_THEIA_EMBEDDINGS.get(embedding, key)] = tensor
        elif module.startswith("attention.attention."):
            part = module.rpartition(".")[2]
            projections.setdefault(f"blocks.{number}.attn.qkv.{leaf}", {})[part] = tensor
        else:
            renamed_state[f"blocks.{number}.{_THEIA_BLOCK.get(module, module)}.{leaf}"] = tensor
    joined = {key: torch.cat([parts[name] for name in ("query", "key", "value")]) for key, parts in projections.items()}
    return renamed_state | joined
