"""A study's settings: nested mappings merged, with dotted names for what lies deeper."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from pipeline.settings import section_of

Settings = dict[str, Any]

LENGTHS = ("epochs", "steps")


def expanded(settings: Mapping[Any, Any]) -> Settings:
    """Nested mappings with every dotted key taken apart: `{a.b: 1}` is `{a: {b: 1}}`; all keys become text."""
    result: Settings = {}
    for name, value in settings.items():
        put(result, str(name), expanded(value) if isinstance(value, Mapping) else value)
    return result


def put(settings: Settings, name: str, value: Any) -> None:
    """Set `a.b.c` in place; a mapping is merged into one that is there.

    `steps` replaces `epochs` beside it and the other way round, as they do on a command line. UsageError where a part
    of the name is no mapping.
    """
    settings, last = section_of(settings, name)
    if isinstance(value, Mapping) and isinstance(settings.get(last), dict):
        for key, inner in value.items():
            put(settings[last], key, inner)
        return
    if last in LENGTHS and value is not None:
        for other in set(LENGTHS) - {last}:
            settings.pop(other, None)
    settings[last] = deepcopy(value)


def merged(base: Mapping[str, Any], *others: Mapping[str, Any]) -> Settings:
    """A copy of `base` with the dotted names and nested values of the others set, one after another."""
    result = expanded(base)
    for other in others:
        for name, value in other.items():
            put(result, str(name), expanded(value) if isinstance(value, Mapping) else value)
    return result


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every value that is no mapping, or an empty one."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
