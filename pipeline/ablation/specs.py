"""The cache specs that a study reads: with its overrides set, defaults written out, and the wanted teachers alone."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.ablation.settings import flattened
from pipeline.cache.spec import CacheSpec, parse_spec
from pipeline.settings import Frozen, dump_yaml, overridden, parse_yaml, read_yaml
from sak.errors import UsageError, nearest

ALL = "*"
_WHOLE = ("encoding", "size", "scale", "ratio")


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


def resolve_spec(settings: CacheSettings, source: str) -> CacheSpec | None:
    """The spec of a study's cache with its overrides; None where it is read as it is. UsageError, one line."""
    if settings.spec is None:
        if settings.overrides:
            raise UsageError(f"{source}: overrides change a spec, and there is none; name it with spec")
        return None
    return _resolved(settings.spec, dump_yaml(dict(_overrides(settings, source)), sort_keys=True), source)


@lru_cache(maxsize=256)
def _resolved(path: str, overrides: str, source: str) -> CacheSpec:
    """Teachers are built (without memory) to know their levels and widths: once for each spec is enough."""
    document = overridden(read_yaml(Path(path), "a cache spec"), parse_yaml(overrides, source))
    return parse_spec(document, source=f"{source}: {path}")


def _overrides(settings: CacheSettings, source: str) -> list[tuple[str, Any]]:
    """(dotted name, value), `*` taken apart; what a spec takes as one value is kept whole."""
    teachers = list(_teachers(read_yaml(Path(str(settings.spec)), "a cache spec")))
    found: list[tuple[str, Any]] = []
    for name, value in _leaves(settings.overrides):
        parts = name.split(".")
        if parts[0] == "teachers" and len(parts) > 2 and parts[1] == ALL:
            found += [(".".join(("teachers", teacher, *parts[2:])), value) for teacher in teachers]
            continue
        if parts[0] == "teachers" and len(parts) > 2 and parts[1] not in teachers:
            raise UsageError(
                f"{source}: overrides.{name}: the spec has no teacher {parts[1]!r}{nearest(parts[1], teachers)}"
            )
        found.append((name, value))
    return found


def _leaves(overrides: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Leaves, but `encoding: {kind, pca}` and its like stay one value: they replace the spec's, and do not mix."""
    leaves: dict[str, Any] = {}
    for name, value in flattened(overrides):
        parts = name.split(".")
        place = next((number for number, part in enumerate(parts[:-1]) if part in _WHOLE), None)
        if place is None:
            leaves[name] = value
        else:
            inner = leaves.setdefault(".".join(parts[: place + 1]), {})
            inner[".".join(parts[place + 1 :])] = value
    return list(leaves.items())


def _teachers(document: Mapping[str, Any]) -> Sequence[str]:
    teachers = document.get("teachers")
    return list(teachers) if isinstance(teachers, Mapping) else []


def only_teachers(spec: CacheSpec, names: Sequence[str] | None, source: str) -> CacheSpec:
    """The spec with some of its teachers, in its own order; columns keep their keys. UsageError for an unknown one."""
    for name in names or ():
        if name not in spec.teachers:
            raise UsageError(f"{source}: the spec has no teacher {name!r}{nearest(name, spec.teachers)}")
    chosen = {name: each for name, each in spec.teachers.items() if names is None or name in names}
    return spec.model_copy(update={"teachers": chosen})


def spec_document(spec: CacheSpec) -> dict[str, Any]:
    """A resolved spec as plain values: what is hashed, and what the stages are given as a file."""
    return spec.model_dump(mode="json")
