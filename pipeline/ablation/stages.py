"""What a study may say of each stage, and how it becomes that stage's recipe and flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeline.ablation.settings import Settings, merged
from pipeline.ablation.specs import CacheSettings
from pipeline.distill import DistillConfig
from pipeline.finetune import FinetuneConfig
from pipeline.settings import Frozen, parse_settings, read_yaml
from pipeline.training.distill_recipe import DistillRecipe
from pipeline.training.finetune_recipe import FinetuneRecipe
from sak.errors import UsageError, nearest

RECIPE = "recipe"
CONFIG = "config"


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
        places: settings that say where something lies, or how fast it goes, and decide nothing of the outcome.
        negated: settings that are true unless a flag says otherwise, with that flag.
    """

    config: type[BaseModel]
    recipe: type[BaseModel] | None
    own: tuple[str, ...]
    places: tuple[str, ...] = ()
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
        """All that decides the outcome, defaults written out; what places hold is told elsewhere."""
        kind = KINDS[self.stage]
        return {"stage": self.stage, **self.checked.model_dump(mode="json", exclude={*kind.own, *kind.places})}

    def with_flags(self, **flags: Any) -> "StageSettings":
        """The same with some more flags, which are not checked again."""
        return StageSettings(self.stage, {**self.flags, **flags}, self.recipe, self.checked.model_copy(update=flags))


def stage_settings(stage: str, settings: Mapping[str, Any], source: str) -> StageSettings:
    """Check one stage's settings; UsageError names the nearest known setting, before anything runs."""
    kind = KINDS[stage]
    for name in settings:
        if name not in kind.known:
            reason = "is decided by the study's other sections" if name in kind.own else "is no setting of it"
            raise UsageError(f"{source}: {stage}.{name} {reason}{nearest(name, kind.known)}")
    given = {name: _plain(settings[name]) for name in kind.settings if settings.get(name) is not None}
    decided: dict[str, Any] = {
        name: ""
        for name in kind.config.model_fields
        if name in kind.own and kind.config.model_fields[name].is_required()
    }
    recipe: Settings = {}
    if kind.recipe is not None:
        recipe = _recipe(settings, source, stage)
        decided[RECIPE] = parse_settings(kind.recipe, recipe, f"{source}: {stage}.recipe")
    checked = parse_settings(kind.config, {**decided, **given}, f"{source}: {stage}")
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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def flag(name: str, value: Any, negated: str | None = None) -> list[str]:
    """One setting as a command line has it; one that is true by default has a flag for false alone."""
    if negated is not None:
        return [] if value else [negated]
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    if isinstance(value, list):
        return [option, ",".join(map(str, value))]
    return [option, str(value)]


def cache_settings(section: str, settings: Mapping[str, Any], source: str) -> CacheSettings:
    """A study's section for a cache, checked."""
    return parse_settings(CacheSettings, settings, f"{source}: {section}")
