"""Where a stem starts from: timm's pretrained weights, the demo's own, a file of a timm ViT, or random numbers."""

from collections.abc import Mapping
from pathlib import Path

import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from sak.errors import SakError, UsageError
from sak.named import demo_weights
from sak.student.foreign import THEIA, renamed, theia_file
from sak.student.lora import LORA_KEYS
from sak.student.sizes import Size
from sak.student.stem import Stem
from sak.student.swin import SwinStem
from sak.weight_files import read_tensors

DEMO = "demo/"
"""What the names of the weights begin with that `pipeline.demo` ships: `demo/stem`."""

_UNUSED = ("norm.", "fc_norm.", "head.")


def load_stem_weights(stem: Stem | SwinStem, name: str | Size, weights: str) -> None:
    """Fill the stem from `pretrained`, `demo/stem` or a file; `SakError` where they are missing or do not fit.

    The position embedding is resampled bicubically with antialias where the stem has another grid, as timm does.
    """
    if weights == "checkpoint":
        raise UsageError("this student came from a checkpoint and starts nowhere else: load it, or name other weights")
    if weights == "pretrained" and name in THEIA:
        file = theia_file(str(name))
        _fill(stem, read_tensors(file), source=str(file))
    elif weights.startswith(DEMO):
        file = demo_weights(weights.removeprefix(DEMO)).fetch(weights)
        _fill(stem, {key: tensor.float() for key, tensor in read_tensors(file).items()}, source=weights)
    elif weights == "pretrained":
        _fill(stem, _pretrained(name), source=f"pretrained {name}")
    else:
        _fill(stem, read_tensors(Path(weights)), source=weights)


def _pretrained(name: str | Size) -> dict[str, Tensor]:
    if not isinstance(name, str):
        raise UsageError(f"there are no pretrained weights for {name}; name a timm stem, a file, or random:SEED")
    if "." not in name:
        raise UsageError(f"stem {name!r}: spell out the weights' tag, as in {name}.augreg_in21k_ft_in1k")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:  # the hub's errors for no network, no such file and offline mode are all of this kind
        raise SakError(
            f"weights of {name} are neither in the Hugging Face cache nor to be had ({str(error).splitlines()[0]}); "
            "fetch them once with a network, give a file, or random:SEED"
        ) from error
    except RuntimeError as error:
        raise UsageError(f"stem {name!r}: {str(error).splitlines()[0]}") from error
    return model.state_dict()


def _fill(stem: Stem | SwinStem, state: Mapping[str, Tensor], *, source: str) -> None:
    own = {key: tensor for key, tensor in stem.model.state_dict().items() if not key.endswith(LORA_KEYS)}
    given = {key: tensor for key, tensor in renamed(state).items() if not key.startswith(_UNUSED)}
    differing = sorted(set(own) ^ set(given))
    if differing:
        raise SakError(f"{source}: keys do not fit the stem, such as {', '.join(differing[:3])}; is it another model?")
    if isinstance(stem, Stem):
        given["pos_embed"] = _resampled(given["pos_embed"], stem, source)
    for key, tensor in given.items():
        if tensor.shape != own[key].shape:
            raise SakError(f"{source}: {key} is {tuple(tensor.shape)}, the stem needs {tuple(own[key].shape)}")
    stem.model.load_state_dict(given, strict=False)  # LoRA's updates stay as they are; all else was checked


def _resampled(pos_embed: Tensor, stem: Stem, source: str) -> Tensor:
    prefix = 0 if stem.vit.no_embed_class else 1
    count = pos_embed.shape[1] - prefix
    if count == stem.vit.pos_embed.shape[1] - prefix:
        return pos_embed
    side = round(count**0.5)
    if side * side != count:
        raise SakError(f"{source}: pos_embed has {count} patches, no square grid, so it cannot be resampled")
    return resample_abs_pos_embed(pos_embed, list(stem.vit.patch_embed.grid_size), num_prefix_tokens=prefix)
