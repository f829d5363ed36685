"""Recipes: YAML files that say how a run goes, overridden by `a.b=value`, with errors that name the nearest key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.cache.spec_file import UniqueKeys
from sak.errors import UsageError, nearest

Config = TypeVar("Config", bound=BaseModel)


def load_recipe(
    kind: type[Config], path: Path | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """A checked configuration: the file's values (or the defaults), then `overrides`, then `flags` that are not None.

    `overrides` are `a.b=value` lines with YAML values, `flags` dotted names. UsageError, one line, for an unreadable
    file, an unknown key (the nearest is named) or a value that does not fit.
    """
    document = read_recipe(path) if path is not None else {}
    source = str(path) if path is not None else "recipe"
    for line in overrides:
        name, equals, text = line.partition("=")
        if not equals:
            raise UsageError(f"--set {line!r}: write it as name=value, such as training.steps=100")
        _put(document, name.strip(), _value(line, text))
    for name, value in (flags or {}).items():
        if value is not None:
            _put(document, name, value)
    return parse_recipe(kind, document, source)


def parse_recipe(kind: type[Config], document: Mapping[str, Any], source: str) -> Config:
    """A checked configuration from a document already read; `source` begins every error, see `load_recipe`."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{source}: {_told(error, kind)}") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a recipe's file; UsageError, one line, where it cannot be read or holds something else."""
    try:
        document = yaml.load(path.read_text(), Loader=UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a recipe: it holds {type(document).__name__}, not named settings")
    return document


def _value(line: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {line!r}: the value is not YAML") from error


def _put(document: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        inner = document.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{name}: {parent} is {inner!r}, it has no settings inside")
        document = inner
    document[last] = value


def _told(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem; an unknown key before what is then missing."""
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {place}{nearest(str(problem['loc'][-1]), _keys_at(kind, problem['loc'][:-1]))}"
    return f"{place + ': ' if place else ''}{problem['msg'].removeprefix('Value error, ')}"


def _keys_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    for part in place:
        inner = kind.model_fields[str(part)].annotation if str(part) in kind.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return list(kind.model_fields)
