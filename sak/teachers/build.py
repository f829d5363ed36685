"""Build a teacher from its recipe: sizes and levels are checked here, at the edge, once."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from sak.errors import UsageError, module_named, nearest
from sak.features import default_levels
from sak.teachers.preprocess import FixedSize, PaddedSquare, Preprocessing
from sak.teachers.recipe import Size, TeacherFacts, TeacherRecipe, as_size
from sak.teachers.registry import find_teacher, teacher_recipe
from sak.teachers.teacher import TEACHER_REVISION, Blueprint, Teacher, Tower, realise
from sak.weight_files import random_seed

_LIBRARIES = {  # module, function that finds a model in it
    "timm": ("sak.teachers.timm_teacher", "timm_blueprint"),
    "open_clip": ("sak.teachers.open_clip_teacher", "open_clip_blueprint"),
    "segment_anything": ("sak.teachers.segment_anything_teacher", "segment_anything_blueprint"),
    "demo": ("pipeline.demo.teachers.blueprint", "demo_blueprint"),
    "custom": ("sak.teachers.custom", "custom_blueprint"),
}
_MAY_BE_NONE = ("reg_tokens", "window_size")  # sizes of which 0 is one


def build_teacher(
    teacher: TeacherRecipe | str,
    *,
    image_size: int | Size = 384,
    device: str | torch.device | None = None,
    **options: Any,
) -> Teacher:
    """Build a frozen teacher.

    Args:
        teacher: Its recipe; or a model string or a name in the table, of which `teacher_recipe` makes one.
        image_size: Size of the images that will come, (height, width) or the side of a square.
        device: Where it goes, torch's default device unless given; `meta` builds its shapes alone, reads no weights
            and has no identity.
        options: Fields of the recipe that are others: `weights="random:0"`, `levels=(6, 12)`; see `TeacherRecipe`.

    Raises:
        UsageError: A name, a size, levels or an option is wrong.
        OtherTeacherError: The weights or the code are not those that the recipe names.
        SakError: The weights are not to be had or do not fit.
    """
    recipe = _resolved(teacher, **options)
    blueprint = _licensed_blueprint(recipe, as_size(image_size, "image_size"))
    tower = blueprint.draw(blueprint.input_size)
    preprocessing = _preprocessing(blueprint, tower)
    levels = _levels(recipe, tower.depth)
    where = torch.get_default_device() if device is None else torch.device(device)
    identity = None
    if where.type == "meta":
        tower.keep_blocks(levels[-1])
    else:
        identity = realise(blueprint, tower, last_level=levels[-1])
    made = replace(
        recipe,
        levels=levels,
        sam_padding=recipe.sam_padding or "keep" if blueprint.square else None,
        weights_sha256=identity,
        revision="/".join(part for part in (TEACHER_REVISION, blueprint.revision) if part),
    )
    built = Teacher(tower, blueprint, made, preprocessing).to(where)
    if identity is not None:
        recipe.check(built.weights_sha256, made)
    return built


def teacher_facts(teacher: TeacherRecipe | str, *, image_size: int | Size = 384) -> TeacherFacts:
    """The facts of a teacher for images of `image_size`, from its shapes alone; reads no weights.

    UsageError for a model that its library does not have or a size that it cannot take.
    """
    recipe, size = _resolved(teacher), as_size(image_size, "image_size")
    blueprint, known = _licensed_blueprint(recipe, size), find_teacher(recipe.model)
    tower = blueprint.draw(blueprint.input_size)
    return TeacherFacts(
        name=recipe.name,
        model=recipe.model,
        licence=blueprint.licence,
        size=known.size if known else "",
        width=tower.width,
        depth=tower.depth,
        patch=tower.patch,
        grid=_preprocessing(blueprint, tower).grid(size),
        parameters=sum(parameter.numel() for parameter in tower.parameters()),
        layer_norm_eps=tower.layer_norm_eps,
        levels=_default_levels(recipe, tower.depth),
        input_size=blueprint.input_size,
    )


def _resolved(teacher: TeacherRecipe | str, **options: Any) -> TeacherRecipe:
    """A recipe whose model is a model string."""
    if isinstance(teacher, str):
        return teacher_recipe(teacher, **options)
    known = find_teacher(teacher.model)
    return replace(teacher, model=known.model if known else teacher.model, **options)


def _licensed_blueprint(recipe: TeacherRecipe, image_size: Size) -> Blueprint:
    """The library's blueprint with the table's licence, where the model is in it."""
    random_seed(recipe.weights)  # refused before anything is drawn
    blueprint, known = _blueprint(recipe, image_size), find_teacher(recipe.model)
    return replace(blueprint, licence=known.licence) if known else blueprint


def _blueprint(recipe: TeacherRecipe, image_size: Size) -> Blueprint:
    """The library's blueprint; UsageError for size overrides that no model takes."""
    module, function = _LIBRARIES[recipe.library]
    library = module_named(module, recipe.model)
    for key, value in recipe.overrides.items():
        if key not in library.OVERRIDES:
            raise UsageError(f"{recipe.model}: no size override {key!r}{nearest(key, library.OVERRIDES)}")
        if value < (0 if key in _MAY_BE_NONE else 1):
            raise UsageError(f"{recipe.model}: size override {key} must be at least 1, got {value}")
    width, heads = recipe.overrides.get("embed_dim", 0), recipe.overrides.get("num_heads", 1)
    if width % heads:
        raise UsageError(f"{recipe.model}: embed_dim {width} is no multiple of num_heads {heads}")
    blueprint: Blueprint = getattr(library, function)(recipe, image_size)
    return blueprint


def _preprocessing(blueprint: Blueprint, tower: Tower) -> Preprocessing:
    """How images become the tower's input; UsageError for a size that it cannot take."""
    (height, width), patch, recipe = blueprint.input_size, tower.patch, blueprint.recipe
    if blueprint.square:
        if height != width or height % patch:
            raise UsageError(
                f"{recipe.name}: input_size must be the side of a square and a multiple of {patch}, "
                f"got {blueprint.input_size}"
            )
        return PaddedSquare(side=height, patch=patch, crop=recipe.sam_padding == "crop")
    if min(height, width) < patch:
        raise UsageError(f"{recipe.name}: images of {height}x{width} hold no whole patch of {patch}x{patch} pixels")
    return FixedSize(blueprint.image_size, blueprint.input_size, patch)


def _default_levels(recipe: TeacherRecipe, depth: int) -> tuple[int, ...]:
    """The table's levels of a named model of that depth, else quarters of the depth; none where it has no quarters."""
    known = find_teacher(recipe.model)
    if known and known.depth == depth:
        return known.levels
    return default_levels(depth) if depth >= 4 and depth % 4 == 0 else ()


def _levels(recipe: TeacherRecipe, depth: int) -> tuple[int, ...]:
    levels = _default_levels(recipe, depth) if recipe.levels is None else recipe.levels
    if recipe.levels is None and not levels:
        raise UsageError(f"{recipe.name}: a depth of {depth} has no quarters to take levels from; name the levels")
    if not (isinstance(levels, list | tuple) and all(isinstance(n, int) for n in levels)):
        raise UsageError(f"{recipe.name}: levels must be block numbers, got {levels!r}")
    increasing = all(low < high for low, high in pairwise(levels))
    if not levels or not increasing or levels[0] < 1 or levels[-1] > depth:
        raise UsageError(
            f"{recipe.name}: levels must be increasing block numbers between 1 and {depth}, got {tuple(levels)}"
        )
    return tuple(levels)
