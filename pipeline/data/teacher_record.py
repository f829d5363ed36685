"""What a run must know of a teacher to have it again, from a column's manifest or from a cache spec."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.cache.manifest import Manifest
from pipeline.cache.spec import TeacherSpec
from pipeline.cache.teacher_facts import is_sam
from sak.teacher_source import TeacherSource

Size = tuple[int, int]


def source_from_manifest(manifest: Manifest, levels: Sequence[int]) -> TeacherSource:
    """The teacher that made a column, at some of its levels."""
    made, views = manifest.document["teacher"], manifest.document["views"]["size"]
    parts = (made["revision"], made["source_sha256"] and f"custom-{made['source_sha256']}")
    return TeacherSource(
        name=manifest.teacher,
        model=made["model"],
        weights=_place(manifest.weights),
        input_size=_own_size(made["model"], made["input_size"], (views[0], views[1])),
        levels=tuple(levels),
        normalization=made["normalization"],
        precision=made["precision"],
        sam_padding=made["sam_padding"],
        overrides=dict(made["overrides"]),
        weights_sha256=made["weights_sha256"],
        revision="/".join(part for part in parts if part),
    )


def source_from_spec(
    name: str, teacher: TeacherSpec, view_size: Size, levels: Sequence[int] | None = None
) -> TeacherSource:
    """A spec's teacher; its weights are what they are."""
    chosen = teacher.levels if levels is None else levels
    return TeacherSource(
        name=name,
        model=teacher.model,
        weights=_place(teacher.weights),
        input_size=_own_size(teacher.model, teacher.input_size, view_size),
        levels=None if chosen is None else tuple(chosen),
        normalization=teacher.normalization,
        precision=teacher.precision,
        sam_padding=teacher.sam_padding,
        overrides=dict(teacher.overrides),
    )


def with_weights_of(known: TeacherSource, spec: TeacherSource) -> TeacherSource:
    """A teacher that is known, its weights where a spec says they are."""
    return replace(known, weights=spec.weights)


def _own_size(model: str, size: Sequence[int] | None, view_size: Size) -> Size | None:
    """The size a tower sees where it is not simply that of the images."""
    if size is None or (not is_sam(model) and tuple(size) == tuple(view_size)):
        return None
    return size[0], size[1]


def _place(weights: str) -> str:
    """A weights file that is there by its whole path, so that it is found from any folder."""
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.is_file() else weights
