"""What identifies the teachers of a spec, without reading large weights again."""

from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.cache.folder import CacheFolder
from pipeline.cache.key import canonical_json
from pipeline.cache.sealed import seal, unseal
from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.cache.store import DamageError
from pipeline.storage import MissingFileError
from sak.teachers import Teacher, TeacherRecipe, build_teacher
from sak.teachers.registry import find_teacher, published_file

_LIBRARIES = ("timm", "open_clip_torch", "segment_anything", "torch")


@dataclass(frozen=True)
class IdentifiedTeacher:
    """A spec's teacher with its identity: what a column's key and manifest need to know.

    `width` and `grid` (height, width) are those of its own maps.
    """

    recipe: TeacherRecipe
    width: int
    grid: tuple[int, int]


def build_from_spec(spec: CacheSpec, name: str, device: str = "cpu") -> Teacher:
    """The teacher called `name` in a spec."""
    return build_teacher(spec.recipe(name), image_size=spec.views.size, device=device)


def identify(cache: CacheFolder, spec: CacheSpec, name: str) -> IdentifiedTeacher:
    """A spec's teacher, identified; the weights are read only where the cache does not know their file yet."""
    drawn = build_from_spec(spec, name, "meta")
    recipe = replace(drawn.recipe, weights_sha256=_weights_digest(cache, spec, name))
    return IdentifiedTeacher(recipe, drawn.width, drawn.grid())


def is_known(cache: CacheFolder, spec: CacheSpec, name: str) -> bool:
    """Whether the cache knows the weights of a spec's teacher, so that they need not be read."""
    known = _known_as(spec.teachers[name])
    return known is not None and cache.location.exists(_path_of(known))


def _weights_digest(cache: CacheFolder, spec: CacheSpec, name: str) -> str:
    """From the cache's list of known weights, else from the weights themselves."""
    known = _known_as(spec.teachers[name])
    if known is None:
        return build_from_spec(spec, name).weights_sha256
    path = _path_of(known)
    try:
        found = unseal(cache.location.read_bytes(path), cache.location.at(path))
        return str(found["weights_sha256"])
    except (MissingFileError, DamageError):
        digest = build_from_spec(spec, name).weights_sha256
        cache.location.write_bytes(path, seal({**known, "weights_sha256": digest}))
        return digest


def _path_of(known: dict[str, Any]) -> str:
    return f"identities/{sha256(canonical_json(known).encode()).hexdigest()[:32]}.json"


def _known_as(teacher: TeacherSpec) -> dict[str, Any] | None:
    """What stands for the weights: their file by place, size and time of change, or the seed; None if there is none."""
    if teacher.model.startswith("custom:"):
        return None
    file: list[Any] | None = None
    if not teacher.weights.startswith("random"):
        path = _weights_file(teacher)
        if path is None or not path.is_file():
            return None
        status = path.resolve().stat()
        file = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return {
        "model": teacher.model,
        "weights": teacher.weights,
        "overrides": teacher.overrides,
        "file": file,
        "libraries": [version(library) for library in _LIBRARIES],
    }


def _weights_file(teacher: TeacherSpec) -> Path | None:
    if teacher.weights != "pretrained":
        return Path(teacher.weights).expanduser()
    row = find_teacher(teacher.model)
    return published_file(row).local() if row else None
