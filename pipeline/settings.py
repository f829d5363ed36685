"""Recipes and settings: how a YAML file, `--set` lines and flags make one, and how its mistakes are worded.

Lines go over the file, flags over both. What comes out is a frozen pydantic object; what is wrong is a UsageError of
one line.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sak.errors import UsageError, nearest

Config = TypeVar("Config", bound=BaseModel)
Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted names, or `a.b=value` lines whose values are YAML."""

LENGTHS = ("epochs", "steps")
OTHER_LENGTH = {"epochs": "steps", "steps": "epochs"}
TRAINING_FLAGS = ("batch_size", "precision", "seed")
_FLOAT = "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_SHOWN_ERRORS = 3


class Frozen(BaseModel):
    """Settings: unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping gives a key twice."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Looked at before merged mappings (`<<`) are put in, which may be overridden."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise _RepeatedKeyError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which `_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):  # YAML 1.1 takes 1e-3 for text: it wants 1.0e-3
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str, source: str, invalid: str = "not valid YAML: ") -> Any:
    """What a text says; UsageError, one line that begins with `source`, where it is no YAML or gives a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _RepeatedKeyError as error:
        raise UsageError(f"{source}: {_reason(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise UsageError(f"{source}: {invalid}{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """In one line, with the number of the text's line where that is not the first."""
    mark = getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 1})" if mark is not None and mark.line else ""
    return " ".join(str(getattr(error, "problem", None) or error).split()) + line


def dump_yaml(document: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """A document that `parse_yaml` reads back to the same."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=sort_keys)


def read_yaml(path: Path, what: str = "a recipe") -> dict[str, Any]:
    """The settings in a file; UsageError, one line, where it cannot be read or holds something else."""
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read as {what}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read as {what}: it is not UTF-8 text") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not {what}: it holds {type(document).__name__}, not named settings")
    return document


def parse_override(line: str) -> tuple[str, Any]:
    """(dotted name, value) of `a.b=value`."""
    name, equals, text = line.partition("=")
    if not equals or not all(part.strip() for part in name.split(".")):
        raise UsageError(f"--set {line}: write it as name=value, such as a.b=1")
    return name.strip(), parse_yaml(text, f"--set {line}", "the value is not YAML, quote it: ")


def section_of(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted name lies in, and the name's last part; what is not there (or off) is made."""
    *parents, last = name.split(".")
    for parent in parents:
        inner = settings.get(parent)
        if inner is None or inner is False:
            inner = {}
        if not isinstance(inner, dict):
            raise UsageError(f"cannot set {name}: {parent} is {inner!r}, not a mapping; set it whole")
        settings[parent] = dict(inner)  # YAML's aliases share mappings
        settings = settings[parent]
    return settings, last


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every value that is no mapping, or an empty one."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def overridden(document: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `document` with dotted names set. A name in a list cannot be set alone: set the whole list.

    `steps` replaces the document's `epochs`, and the other way round; both among the overrides are left to the check.
    """
    result = dict(document)
    pairs = list(overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides))
    names = {name for name, _ in pairs}
    for name, value in pairs:
        inner, last = section_of(result, name)
        other = OTHER_LENGTH.get(last)
        if other is not None and value is not None and f"{name.removesuffix(last)}{other}" not in names:
            inner.pop(other, None)
        inner[last] = value
    return result


def load_settings(
    kind: type[Config], path: Path | None, overrides: Overrides = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Checked settings: the recipe's values (or the defaults), then `overrides`, then `flags` by dotted names."""
    document = read_yaml(path) if path is not None else {}
    document = overridden(overridden(document, overrides), flags or {})
    return parse_settings(kind, document, str(path) if path is not None else "recipe")


def recipe_and_rest(
    kind: type[Config], flags: Mapping[str, Any], also: Mapping[str, Sequence[str]] | None = None
) -> tuple[Config, dict[str, Any]]:
    """A stage's recipe by the flags `config`, `overrides` and those of the training, and all flags that are left.

    `also` names further flags and the recipe's settings, by dotted names, that each stands for. A flag that is None
    was not given; paths become text, as `config.yaml` has them. UsageError, one line, where anything is wrong.
    """
    rest = {
        name: str(value) if isinstance(value, Path) else value for name, value in flags.items() if value is not None
    }
    file, overrides = rest.pop("config", None), rest.pop("overrides", ())
    length = {name: rest.pop(name) for name in LENGTHS if name in rest}
    if len(length) > 1:
        raise UsageError("give --epochs or --steps, one of them")
    settings = {f"training.{name}": value for name, value in length.items()}
    stands_for = {**{name: (f"training.{name}",) for name in TRAINING_FLAGS}, **(also or {})}
    for flag, names in stands_for.items():
        if flag in rest:
            settings |= dict.fromkeys(names, rest.pop(flag))
    return load_settings(kind, Path(file) if file is not None else None, overrides, settings), rest


def parse_settings(kind: type[Config], document: Mapping[str, Any], source: str) -> Config:
    """Checked settings from a document already read; `source` begins every error.

    An unknown key names the nearest that could stand there; of more than three mistakes the rest is counted.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{source}: {_worded(error, kind)}") from error


def _worded(error: ValidationError, kind: type[BaseModel]) -> str:
    mistakes = error.errors(include_url=False)
    # an unknown key is shown in any case: what is missing is most often what it was meant to be
    first = sorted(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")[:_SHOWN_ERRORS]
    shown = [_mistake(dict(mistake), kind) for mistake in mistakes if mistake in first]
    more = f"; and {len(mistakes) - len(shown)} more" if len(mistakes) > len(shown) else ""
    return f"{'; '.join(shown)}{more}"


def _mistake(mistake: dict[str, Any], kind: type[BaseModel]) -> str:
    location, given = tuple(mistake["loc"]), mistake["input"]
    where = ".".join(str(part) for part in location)
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(location[-1]), _known_keys(kind, location[:-1]))}"
    if mistake["type"] == "missing":
        return f"{where} is missing"
    if mistake["type"] == "value_error":
        return f"{where}: {mistake['ctx']['error']}" if where else str(mistake["ctx"]["error"])
    if mistake["type"] == "literal_error":
        known = mistake["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{where} must be one of {known}, got {given!r}"
    return f"{where}: {mistake['msg']}, got {given!r}"


def _known_keys(kind: Any, location: Sequence[str | int]) -> list[str]:
    """The keys that settings of type `kind` may have at `location`."""
    for part in location:
        if _is_settings(kind):
            field = kind.model_fields.get(str(part))
            kind = _not_none(field.annotation) if field is not None else None
        elif get_args(kind):  # of dict[str, X]: X
            kind = get_args(kind)[-1]
    return list(kind.model_fields) if _is_settings(kind) else []


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _not_none(annotation: Any) -> Any:
    """X of `X | None`."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    return next(kind for kind in get_args(annotation) if kind is not NoneType)
