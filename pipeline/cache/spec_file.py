"""Reading a spec's YAML: duplicate keys refused, `--set` applied, pydantic's errors told in one line."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sak.errors import UsageError, nearest

_SHOWN_ERRORS = 3


class UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; YAMLError for a key that is there twice, merged ones (`<<`) aside."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file; UsageError names the file, and the line where it is not YAML."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the path of a spec, as in cache_specs/demo.yaml") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text; give the path of a spec") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a spec is a mapping of keys, got {type(document).__name__}")
    return document


def apply_overrides(
    document: Mapping[str, object], overrides: Mapping[str, object] | Sequence[str], source: str = "--set"
) -> dict[str, object]:
    """A copy of `document` with dotted names set (`teachers.sam.encoding.pca`), values as YAML in `a.b=value` lines.

    A name in a list cannot be set alone: set the whole list.
    """
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_split(line) for line in overrides]
    result: dict[str, object] = dict(document)
    for name, value in pairs:
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            inner = place.get(parent)
            if inner is not None and not isinstance(inner, dict):
                raise UsageError(f"{source}: cannot set {name}: {parent} is {inner!r}, not a mapping; set it whole")
            place[parent] = dict(inner or {})
            place = place[parent]  # type: ignore[assignment] # the dict of the line above
        place[last] = value
    return result


def _split(line: str) -> tuple[str, object]:
    name, equals, value = line.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise UsageError(f"--set {line}: give name=value, as in teachers.sam.encoding=int4")
    try:
        return name.strip(), yaml.load(value, Loader=UniqueKeys)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {line}: the value is not valid YAML; quote it") from error


def spec_error(
    error: ValidationError, source: str, fields_at: Callable[[tuple[str | int, ...]], list[str]]
) -> UsageError:
    """Pydantic's findings as one line; an unknown key names the nearest key that could stand there."""
    found = error.errors(include_url=False)
    told = [_tell(dict(each), fields_at) for each in found[:_SHOWN_ERRORS]]
    more = f"; and {len(found) - _SHOWN_ERRORS} more" if len(found) > _SHOWN_ERRORS else ""
    return UsageError(f"{source}: {'; '.join(told)}{more}")


def _tell(finding: dict[str, Any], fields_at: Callable[[tuple[str | int, ...]], list[str]]) -> str:
    location, given = tuple(finding["loc"]), finding["input"]
    where = ".".join(str(part) for part in location)
    if finding["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(location[-1]), fields_at(location[:-1]))}"
    if finding["type"] == "missing":
        return f"{where} is missing"
    if finding["type"] == "value_error":
        return f"{where}: {finding['ctx']['error']}" if where else str(finding["ctx"]["error"])
    if finding["type"] == "literal_error":
        known = [word.strip("'") for word in finding["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"{where} must be one of {', '.join(known)}, got {given!r}"
    return f"{where}: {finding['msg'][0].lower()}{finding['msg'][1:]}, got {given!r}"
