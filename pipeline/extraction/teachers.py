"""Teachers of a spec or a manifest, and what identifies them without reading large weights again."""

from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.cache.folder import CacheFolder
from pipeline.cache.key import canonical_json
from pipeline.cache.manifest import Manifest
from pipeline.cache.sealed import seal, unseal
from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.cache.store import DamageError
from pipeline.storage import MissingFileError
from sak.errors import SakError
from sak.teachers import Teacher, build_teacher
from sak.teachers.registry import find_teacher

_LIBRARIES = ("timm", "open_clip_torch", "segment_anything", "torch")


@dataclass(frozen=True)
class Identity:
    """What a column's key and manifest need to know of a teacher; `grid` is (height, width) of its own maps."""

    weights_sha256: str
    revision: str
    source_sha256: str | None
    width: int
    grid: tuple[int, int]


def build_from_spec(spec: CacheSpec, name: str, device: str = "cpu") -> Teacher:
    """The teacher called `name` in a spec."""
    return _build(spec.teachers[name], spec.views.size, name, device)


def build_from_manifest(manifest: Manifest, device: str = "cpu") -> Teacher:
    """The teacher that made a column; SakError where its weights are not those of the column any more."""
    made = manifest.document["teacher"]
    wanted = TeacherSpec(
        model=made["model"],
        weights=manifest.weights,
        input_size=made["input_size"],
        normalization=made["normalization"],
        precision=made["precision"],
        sam_padding=made["sam_padding"],
        overrides=made["overrides"],
        levels=manifest.document["levels"],
    )
    height, width = manifest.document["views"]["size"]
    teacher = _build(wanted, (height, width), manifest.teacher, device)
    found = {
        "weights": (teacher.weights_sha256, made["weights_sha256"]),
        "code revision": (_revision(teacher)[0], made["revision"]),
        "builder's source": (_revision(teacher)[1], made["source_sha256"]),
    }
    for what, (here, there) in found.items():
        if here != there:
            raise SakError(
                f"columns/{manifest.name}: made from {what} {str(there)[:12]}, here it is {str(here)[:12]}; "
                "bring that one back, or extract the teacher again"
            )
    return teacher


def identify(cache: CacheFolder, spec: CacheSpec, name: str) -> Identity:
    """The identity of a spec's teacher; the weights are read only where the cache does not know their file yet."""
    drawn = build_from_spec(spec, name, "meta")
    revision, source = _revision(drawn)
    digest = _weights_digest(cache, spec, name)
    return Identity(digest, revision, source, drawn.width, drawn.grid())


def is_known(cache: CacheFolder, spec: CacheSpec, name: str) -> bool:
    """Whether the cache knows the weights of a spec's teacher, so that they need not be read."""
    known = _known_as(spec.teachers[name])
    return known is not None and cache.location.exists(_path_of(known))


def _build(teacher: TeacherSpec, view_size: tuple[int, int], name: str, device: str) -> Teacher:
    return build_teacher(
        teacher.model,
        weights=teacher.weights,
        image_size=view_size,
        input_size=teacher.input_size,
        levels=teacher.levels,
        normalization=teacher.normalization,
        precision=teacher.precision,
        sam_padding=teacher.sam_padding or "keep",
        overrides=teacher.overrides,
        name=name,
        device=device,
    )


def _revision(teacher: Teacher) -> tuple[str, str | None]:
    """(revision of our teacher code, SHA-256 of a custom builder's source)."""
    revision, _, source = teacher.facts.revision.partition("/")
    return revision, source.removeprefix("custom-") or None


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
    return row.published().local() if row else None
