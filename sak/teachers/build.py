"""Build a teacher from a model string: validated here, at the edge, once."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from sak.errors import UsageError, nearest
from sak.features import default_levels
from sak.named import module_named
from sak.teachers.base import PRECISIONS, TEACHER_REVISION, Teacher, TeacherFacts
from sak.teachers.info import TeacherInfo
from sak.teachers.names import ModelName, parse_model
from sak.teachers.preprocess import IMAGENET, FixedSize, InputRecipe, PaddedSquare, Size, as_size
from sak.teachers.registry import find_teacher
from sak.teachers.tower import Blueprint, Tower, TowerRequest, realise
from sak.teachers.weights import parse_weights

_LIBRARIES = {  # module, function that finds a model in it
    "timm": ("sak.teachers.timm_teacher", "timm_blueprint"),
    "open_clip": ("sak.teachers.open_clip_teacher", "open_clip_blueprint"),
    "segment_anything": ("sak.teachers.segment_anything_teacher", "segment_anything_blueprint"),
    "demo": ("pipeline.demo.teachers.blueprint", "demo_blueprint"),
    "custom": ("sak.teachers.custom", "custom_blueprint"),
}
_MAY_BE_NONE = ("reg_tokens", "window_size")  # sizes of which 0 is one
_WORDS = {"normalization": ("imagenet", "native"), "precision": tuple(PRECISIONS), "sam_padding": ("keep", "crop")}


@dataclass(frozen=True)
class _Options:
    """What `build_teacher` was asked for, besides the model and its weights."""

    name: str
    levels: tuple[int, ...] | None
    normalization: str
    precision: str
    sam_padding: str
    is_random: bool

    def __post_init__(self) -> None:
        for option, words in _WORDS.items():
            word = getattr(self, option)
            if word not in words:
                raise UsageError(f"{self.name}: {option} must be one of {', '.join(words)}, got {word!r}")


def build_teacher(  # noqa: PLR0913 (the fields of a teacher in a cache spec)
    model: str,
    *,
    weights: str | Path = "pretrained",
    image_size: int | Size = 384,
    input_size: int | Size | None = None,
    levels: tuple[int, ...] | None = None,
    normalization: str = "imagenet",
    precision: str = "fp32",
    sam_padding: str = "keep",
    overrides: Mapping[str, int] | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> Teacher:
    """Build a frozen teacher.

    Args:
        model: `timm/<model>.<tag>`, `open_clip/<arch>/<tag>`, `segment_anything/<vit_b|vit_l|vit_h>`, `demo/<name>`,
            `custom:<module>:<builder>`, or a name in the registry.
        weights: `pretrained`, a file, or `random:SEED`; nothing else ever leads to random weights.
        image_size: Size of the images that will come, (height, width) or the side of a square.
        input_size: What the tower sees: SAM's square (1024), else the images' own size; images are resized to it.
        levels: Block numbers from 1, increasing; default a quarter, a half, three quarters and all of the depth.
        normalization: `imagenet` for every teacher (published code), or the weights' own with `native`.
        precision: `fp32`, or `bf16` and `fp16` under autocast with a float32 residual stream.
        sam_padding: SAM's padding stays in the maps with `keep` (published code), `crop` leaves it out.
        overrides: `embed_dim`, `depth`, `num_heads`, `reg_tokens`, `window_size` of a small model, for tests.
        name: What the teacher is called; default its name in the registry, else the architecture.
        device: Where it goes, torch's default device unless given; `meta` builds its shapes alone, reads no weights
            and has no identity.

    Raises:
        UsageError: A name, a size, levels or an option is wrong.
        SakError: The weights are not to be had or do not fit.
    """
    known = find_teacher(model)
    parsed = parse_model(known.model if known else model)
    source = parse_weights(weights)
    called = name or (known.name if known else parsed.short)
    options = _Options(called, levels, normalization, precision, sam_padding, source.is_random)
    blueprint = _blueprint(_request(parsed, image_size, input_size, overrides or {}))
    tower = blueprint.draw(blueprint.input_size)
    recipe = _recipe(blueprint, tower, options)
    facts = _facts(blueprint, tower, options, known)
    place = torch.get_default_device() if device is None else torch.device(device)
    if place.type == "meta":
        tower.keep_blocks(facts.levels[-1])
        return Teacher(tower, facts, recipe, None).to(place)
    identity = realise(blueprint, tower, source, last_level=facts.levels[-1])
    return Teacher(tower, facts, recipe, identity).to(place)


def _request(
    name: ModelName, image_size: int | Size, input_size: int | Size | None, overrides: Mapping[str, int]
) -> TowerRequest:
    wanted = None if input_size is None else as_size(input_size, "input_size")
    return TowerRequest(name, as_size(image_size, "image_size"), wanted, dict(overrides))


def _blueprint(request: TowerRequest) -> Blueprint:
    module, function = _LIBRARIES[request.name.library]
    library = module_named(module, request.name.text)
    for key, value in request.overrides.items():
        if key not in library.OVERRIDES:
            raise UsageError(f"{request.name.text}: no size override {key!r}{nearest(key, library.OVERRIDES)}")
        if value < (0 if key in _MAY_BE_NONE else 1):
            raise UsageError(f"{request.name.text}: size override {key} must be at least 1, got {value}")
    width, heads = request.overrides.get("embed_dim", 0), request.overrides.get("num_heads", 1)
    if width % heads:
        raise UsageError(f"{request.name.text}: embed_dim {width} is no multiple of num_heads {heads}")
    blueprint: Blueprint = getattr(library, function)(request)
    return blueprint


def _recipe(blueprint: Blueprint, tower: Tower, options: _Options) -> InputRecipe:
    """How images become the tower's input; UsageError for a size that it cannot take."""
    (height, width), patch = blueprint.input_size, tower.patch
    if blueprint.square:
        if height != width or height % patch:
            raise UsageError(
                f"{options.name}: input_size must be the side of a square and a multiple of {patch}, "
                f"got {blueprint.input_size}"
            )
        return PaddedSquare(side=height, patch=patch, crop=options.sam_padding == "crop")
    if min(height, width) < patch:
        raise UsageError(f"{options.name}: images of {height}x{width} hold no whole patch of {patch}x{patch} pixels")
    return FixedSize(blueprint.request.image_size, blueprint.input_size, patch)


def _facts(blueprint: Blueprint, tower: Tower, options: _Options, known: TeacherInfo | None) -> TeacherFacts:
    levels = options.levels
    if levels is None and known and known.depth == tower.depth:
        levels = known.levels
    return TeacherFacts(
        name=options.name,
        model=blueprint.request.name.text,
        licence=known.licence if known else blueprint.licence,
        levels=_levels(options.name, levels, tower.depth),
        image_size=blueprint.request.image_size,
        input_size=blueprint.input_size,
        normalization=IMAGENET if options.normalization == "imagenet" else blueprint.normalization,
        precision=options.precision,
        sam_padding=options.sam_padding if blueprint.square else None,
        is_random=options.is_random,
        revision="/".join(part for part in (TEACHER_REVISION, blueprint.revision) if part),
    )


def _levels(name: str, levels: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    if levels is None and (depth < 4 or depth % 4):
        raise UsageError(f"{name}: a depth of {depth} has no quarters to take levels from; name the levels")
    if levels is not None and not (isinstance(levels, list | tuple) and all(isinstance(n, int) for n in levels)):
        raise UsageError(f"{name}: levels must be block numbers, got {levels!r}")
    chosen = default_levels(depth) if levels is None else tuple(levels)
    increasing = all(low < high for low, high in pairwise(chosen))
    if not chosen or not increasing or chosen[0] < 1 or chosen[-1] > depth:
        raise UsageError(f"{name}: levels must be increasing block numbers between 1 and {depth}, got {chosen}")
    return chosen
