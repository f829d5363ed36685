"""The one way to settings, and the one way its errors read: a YAML file, `--set` lines over it, flags over both.

What comes out is a frozen pydantic object; what is wrong is a UsageError of one line.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sak.errors import UsageError, nearest

Config = TypeVar("Config", bound=BaseModel)
Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted names, or `a.b=value` lines whose values are YAML."""

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
    place = f" (line {mark.line + 1})" if mark is not None and mark.line else ""
    return " ".join(str(getattr(error, "problem", None) or error).split()) + place


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


def overridden(document: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `document` with dotted names set. A name in a list cannot be set alone: set the whole list."""
    result = dict(document)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    for name, value in pairs:
        inner, last = section_of(result, name)
        inner[last] = value
    return result


def load_settings(
    kind: type[Config], path: Path | None, overrides: Overrides = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Checked settings: the recipe's values (or the defaults), then `overrides`, then `flags` by dotted names."""
    document = read_yaml(path) if path is not None else {}
    document = overridden(overridden(document, overrides), flags or {})
    return parse_settings(kind, document, str(path) if path is not None else "recipe")


def parse_settings(kind: type[Config], document: Mapping[str, Any], source: str) -> Config:
    """Checked settings from a document already read; `source` begins every error.

    An unknown key names the nearest that could stand there; of more than three findings the rest is counted.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{source}: {_worded(error, kind)}") from error


def _worded(error: ValidationError, kind: type[BaseModel]) -> str:
    found = error.errors(include_url=False)
    # an unknown key is told in any case: what is missing is most often what it was meant to be
    first = sorted(found, key=lambda finding: finding["type"] != "extra_forbidden")[:_SHOWN_ERRORS]
    told = [_finding(dict(finding), kind) for finding in found if finding in first]
    more = f"; and {len(found) - len(told)} more" if len(found) > len(told) else ""
    return f"{'; '.join(told)}{more}"


def _finding(finding: dict[str, Any], kind: type[BaseModel]) -> str:
    location, given = tuple(finding["loc"]), finding["input"]
    where = ".".join(str(part) for part in location)
    if finding["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(location[-1]), _known_keys(kind, location[:-1]))}"
    if finding["type"] == "missing":
        return f"{where} is missing"
    if finding["type"] == "value_error":
        return f"{where}: {finding['ctx']['error']}" if where else str(finding["ctx"]["error"])
    if finding["type"] == "literal_error":
        known = finding["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{where} must be one of {known}, got {given!r}"
    return f"{where}: {finding['msg']}, got {given!r}"


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
    return next(get_arg for get_arg in get_args(annotation) if get_arg is not NoneType)
