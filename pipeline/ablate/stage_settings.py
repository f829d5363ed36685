"""What a study may say of each stage and of its caches, and how it becomes that stage's recipe, flags and spec.

A study's settings are nested mappings, with dotted names for what lies deeper; `merged` lays changes over a base.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeline.cache.spec import CacheSpec, parse_spec
from pipeline.distill.stage import DistillConfig, DistillRecipe
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.finetune.stage import FinetuneConfig
from pipeline.settings import (
    OTHER_LENGTH,
    Frozen,
    dump_yaml,
    flattened,
    overridden,
    parse_settings,
    parse_yaml,
    read_yaml,
    section_of,
)
from sak.errors import UsageError, nearest

Settings = dict[str, Any]

RECIPE, CONFIG = "recipe", "config"
ALL_TEACHERS = "*"
_SET_WHOLE = ("encoding", "size", "scale", "ratio")


class CacheSettings(Frozen):
    """One cache of a study: the section `extract` or `held_out`.

    Without `spec` it is read as it is and nothing is extracted. `overrides` change the spec, `*` standing for every
    teacher. `samples` is how many images there are, for estimates where the data is not at hand.
    """

    cache: str
    spec: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    data: str | None = None
    views: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    max_bad: float | None = Field(default=None, ge=0, le=1)
    samples: int | None = Field(default=None, ge=1)


class EvaluateSettings(Frozen):
    """What a study says of `sak-cli evaluate`."""

    split: str = "val"
    checkpoint: Literal["best", "last"] = "best"
    tasks: tuple[str, ...] | None = None
    boundary: bool = True
    batch_size: int = Field(default=8, ge=1)
    workers: int = Field(default=2, ge=0)
    limit: int | None = Field(default=None, ge=1)
    pictures: int = Field(default=4, ge=0)


@dataclass(frozen=True)
class StageKind:
    """A stage of a run.

    Attributes:
        config: the settings of a run, as its `config.yaml` has them; its field `recipe` is of type `recipe`.
        recipe: what a recipe's file holds; None: the stage takes none.
        own: settings that the ablation decides itself, which a study may not name.
        undecisive: settings that say where something lies, or how fast it goes, and decide nothing of the outcome.
        negated: settings that are true unless a flag says otherwise, with that flag.
    """

    config: type[BaseModel]
    recipe: type[BaseModel] | None
    own: tuple[str, ...]
    undecisive: tuple[str, ...] = ()
    negated: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> tuple[str, ...]:
        """What a study may set, beside `config` (the recipe's file) and `recipe` (changes of it)."""
        return tuple(name for name in self.config.model_fields if name not in (*self.own, RECIPE))

    @property
    def known(self) -> tuple[str, ...]:
        """All that a study may name."""
        return self.settings if self.recipe is None else (*self.settings, CONFIG, RECIPE)


KINDS: dict[str, StageKind] = {
    "distill": StageKind(DistillConfig, DistillRecipe, ("cache", "val_cache", "spec", "device"), ("data", "val_data")),
    "finetune": StageKind(FinetuneConfig, FinetuneRecipe, ("device",), (), {"distil": "--no-distill"}),
    "evaluate": StageKind(EvaluateSettings, None, (), ("batch_size", "workers"), {"boundary": "--no-boundary"}),
}


@dataclass(frozen=True)
class StageSettings:
    """One stage of one run: its `flags` as the study gives them, the whole `recipe`, and both `checked`."""

    stage: str
    flags: Mapping[str, Any]
    recipe: Mapping[str, Any]
    checked: BaseModel

    def arguments(self) -> list[str]:
        """The flags as the command line takes them."""
        negated = KINDS[self.stage].negated
        return [argument for name, value in self.flags.items() for argument in flag(name, value, negated.get(name))]

    def identity(self) -> Settings:
        """All that decides the outcome, defaults written out; its caches and its start are added by the job."""
        kind = KINDS[self.stage]
        return {"stage": self.stage, **self.checked.model_dump(mode="json", exclude={*kind.own, *kind.undecisive})}

    def with_flags(self, **flags: Any) -> "StageSettings":
        """The same with some more flags, which are not checked again."""
        return replace(self, flags={**self.flags, **flags}, checked=self.checked.model_copy(update=flags))


def stage_settings(stage: str, settings: Mapping[str, Any], source: str) -> StageSettings:
    """Check one stage's settings; UsageError names the nearest known setting, before anything runs."""
    kind = KINDS[stage]
    for name in settings:
        if name not in kind.known:
            reason = "is decided by the study's other sections" if name in kind.own else "is no setting of it"
            raise UsageError(f"{source}: {stage}.{name} {reason}{nearest(name, kind.known)}")
    given = {name: settings[name] for name in kind.settings if settings.get(name) is not None}
    # what the ablation decides is not known yet; it must only be there for the check
    document: Settings = {name: "" for name in kind.own if kind.config.model_fields[name].is_required()} | given
    recipe: Settings = {}
    if kind.recipe is not None:
        recipe = _recipe(settings, source, stage)
        document[RECIPE] = parse_settings(kind.recipe, recipe, f"{source}: {stage}.recipe")
    checked = parse_settings(kind.config, document, f"{source}: {stage}")
    flags = {name: value for name, value in given.items() if value is not False or name in kind.negated}
    return StageSettings(stage, flags, recipe, checked)


def _recipe(settings: Mapping[str, Any], source: str, stage: str) -> Settings:
    """The file's settings with the study's changes."""
    changes = settings.get(RECIPE) or {}
    if not isinstance(changes, Mapping):
        raise UsageError(
            f"{source}: {stage}.recipe is {changes!r}: it changes settings of a recipe, whose file is {stage}.config"
        )
    file = settings.get(CONFIG)
    return merged(read_yaml(Path(file)) if file is not None else {}, changes)


def flag(name: str, value: Any, negated: str | None = None) -> list[str]:
    """One setting as a command line has it; one that is true by default has a flag for false alone."""
    if negated is not None:
        return [] if value else [negated]
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    return [option, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]


def resolve_spec(settings: CacheSettings, source: str) -> CacheSpec | None:
    """The spec of a study's cache with its overrides; None where it is read as it is. UsageError, one line."""
    if settings.spec is None:
        if settings.overrides:
            raise UsageError(f"{source}: overrides change a spec, and there is none; name it with spec")
        return None
    changes = _overrides(settings.spec, settings.overrides, source)
    return _resolved(settings.spec, dump_yaml(changes, sort_keys=True), source)


@lru_cache(maxsize=256)
def _resolved(path: str, overrides: str, source: str) -> CacheSpec:
    """Teachers are built (without memory) to know their levels and widths: once for each spec is enough."""
    document = overridden(read_yaml(Path(path), "a cache spec"), parse_yaml(overrides, source))
    return parse_spec(document, source=f"{source}: {path}")


def _overrides(spec: str, overrides: Mapping[str, Any], source: str) -> Settings:
    """Values by dotted names, `*` taken apart; what a spec takes as one value is kept whole."""
    section = read_yaml(Path(spec), "a cache spec").get("teachers")
    teachers = list(section) if isinstance(section, Mapping) else []
    changes: Settings = {}
    for name, value in _leaves(overrides).items():
        parts = name.split(".")
        of_teacher = parts[0] == "teachers" and len(parts) > 2
        if of_teacher and parts[1] == ALL_TEACHERS:
            changes |= {".".join(("teachers", teacher, *parts[2:])): value for teacher in teachers}
        elif of_teacher and parts[1] not in teachers:
            hint = nearest(parts[1], teachers)
            raise UsageError(f"{source}: overrides.{name}: the spec has no teacher {parts[1]!r}{hint}")
        else:
            changes[name] = value
    return changes


def _leaves(overrides: Mapping[str, Any]) -> Settings:
    """Leaves, but `encoding: {kind, pca}` and its like stay one value: they replace the spec's, and do not mix."""
    leaves: Settings = {}
    for name, value in flattened(overrides):
        parts = name.split(".")
        end = next((index for index, part in enumerate(parts[:-1], 1) if part in _SET_WHOLE), None)
        if end is None:
            leaves[name] = value
        else:
            leaves.setdefault(".".join(parts[:end]), {})[".".join(parts[end:])] = value
    return leaves


def only_teachers(spec: CacheSpec, names: Sequence[str] | None, source: str) -> CacheSpec:
    """The spec with some of its teachers, in its own order; columns keep their keys. UsageError for an unknown one."""
    for name in names or ():
        if name not in spec.teachers:
            raise UsageError(f"{source}: the spec has no teacher {name!r}{nearest(name, spec.teachers)}")
    chosen = {name: teacher for name, teacher in spec.teachers.items() if names is None or name in names}
    return spec.model_copy(update={"teachers": chosen})


def spec_document(spec: CacheSpec) -> Settings:
    """A resolved spec as plain values: what is hashed, and what the stages are given as a file."""
    return spec.model_dump(mode="json")


def merged(*layers: Mapping[Any, Any]) -> Settings:
    """A new mapping with the dotted names and nested values of each set, one after another; all keys become text."""
    result: Settings = {}
    for layer in layers:
        for name, value in layer.items():
            _put(result, str(name), merged(value) if isinstance(value, Mapping) else value)
    return result


def _put(settings: Settings, name: str, value: Any) -> None:
    """Set `a.b.c` in place; a mapping is merged into one that is there.

    `steps` replaces `epochs` beside it and the other way round, as they do on a command line. UsageError where a part
    of the name is no mapping.
    """
    settings, last = section_of(settings, name)
    if isinstance(value, Mapping) and isinstance(settings.get(last), dict):
        for key, inner in value.items():
            _put(settings[last], key, inner)
        return
    if last in OTHER_LENGTH and value is not None:
        settings.pop(OTHER_LENGTH[last], None)
    settings[last] = deepcopy(value)
