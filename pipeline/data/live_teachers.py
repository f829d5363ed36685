"""Teachers that run beside the training, instead of their cached features or along with those of others.

They are built as the extraction built them, from a column's manifest or from a spec, and give their own maps: nothing
is encoded, nothing projected. `sak.teachers` is imported when the first one is built, and not otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.cache.cache import FeatureCache
from pipeline.cache.column_codec import Grid, reduction_of
from pipeline.cache.folder import Cache
from pipeline.cache.key import explain_difference
from pipeline.cache.manifest import Manifest
from pipeline.cache.selection import select_columns
from pipeline.cache.spec import CacheSpec, TeacherSpec
from sak.errors import SakError, UsageError
from sak.features import FeatureMaps

if TYPE_CHECKING:
    from sak.teachers import Teacher


@dataclass(frozen=True)
class LiveTeacher:
    """One of them: all the levels its column has, those that are wanted, and the grid its targets are reduced to.

    `area` is the student's grid where the cache holds area means, which are another loss; None elsewhere.
    """

    teacher: "Teacher"
    levels: tuple[int, ...]
    wanted: tuple[int, ...]
    area: Grid | None = None

    def __call__(self, images: Tensor) -> FeatureMaps:
        """(B, 3, H, W) in [0, 1] to the wanted levels' maps (B, C, h, w)."""
        from pipeline.cache.reduction import area_pool

        maps = self.teacher(images)
        chosen = tuple(maps[level] for level in self.wanted)
        return FeatureMaps(self.wanted, chosen if self.area is None else tuple(area_pool(m, self.area) for m in chosen))


@dataclass(frozen=True)
class LiveTeachers:
    """Several teachers, by name."""

    teachers: Mapping[str, LiveTeacher]

    def __call__(self, images: Tensor) -> dict[str, FeatureMaps]:
        """(B, 3, H, W) in [0, 1] to each teacher's wanted levels."""
        return {name: teacher(images) for name, teacher in self.teachers.items()}

    def describe(self) -> dict[str, Any]:
        """For a run's `run.json`."""
        return {
            name: {"model": each.teacher.model, "weights_sha256": each.teacher.weights_sha256, "levels": each.wanted}
            for name, each in self.teachers.items()
        }


def manifest_of(cache: str | Cache, name: str) -> Manifest:
    """The manifest of a teacher's column, however much of it is extracted; UsageError where there is none."""
    (columns,) = select_columns(Cache.open(cache), [name]).values()
    return columns[0].manifest


def live_from_manifest(manifest: Manifest, levels: Sequence[int] | None, device: torch.device) -> LiveTeacher:
    """The teacher that made a column; SakError where its weights or our code are not those of the column any more."""
    made = manifest.document["teacher"]
    names = ("model", "input_size", "normalization", "precision", "sam_padding", "overrides")
    chosen = TeacherSpec(
        weights=manifest.weights, levels=manifest.document["levels"], **{name: made[name] for name in names}
    )
    live = _build(manifest.teacher, chosen, tuple(manifest.document["views"]["size"]), levels, device)
    revision, _, source = live.teacher.facts.revision.partition("/")
    found = {
        "weights": (live.teacher.weights_sha256, made["weights_sha256"]),
        "code revision": (revision, made["revision"]),
        "builder's source": (source.removeprefix("custom-") or None, made["source_sha256"]),
    }
    for what, (here, there) in found.items():
        if here != there:
            raise SakError(
                f"columns/{manifest.name}: made from {what} {str(there)[:12]}, here it is {str(here)[:12]}; "
                "bring that one back, or extract the teacher again"
            )
    reduction = reduction_of(manifest.document, manifest.grid)
    return replace(live, area=reduction.student_grid if reduction.effective == "area" else None)


def live_from_spec(
    spec: CacheSpec, name: str, levels: Sequence[int] | None, cached: FeatureCache, device: torch.device
) -> LiveTeacher:
    """A spec's teacher, which need not be in the cache; UsageError where the spec has other views than the cache."""
    differing = explain_difference(cached.view_policy.model_dump(mode="json"), spec.views.model_dump(mode="json"))
    if differing:
        told = "; ".join(f"{field}: cache {there!r}, spec {asked!r}" for field, there, asked in differing)
        raise UsageError(f"{name}: the spec has other views than {cached.cache}: {told}; use a spec of the same views")
    return _build(name, spec.teachers[name], spec.views.size, levels, device)


def _build(
    name: str, wanted: TeacherSpec, view_size: Grid, levels: Sequence[int] | None, device: torch.device
) -> LiveTeacher:
    from sak.teachers import build_teacher

    have = tuple(wanted.levels or ())
    unknown = [level for level in levels or () if level not in have]
    if unknown:
        raise UsageError(f"{name} has levels {', '.join(map(str, have))}, not {', '.join(map(str, unknown))}")
    teacher = build_teacher(
        wanted.model,
        weights=wanted.weights,
        image_size=view_size,
        input_size=wanted.input_size,
        levels=have,
        normalization=wanted.normalization,
        precision=wanted.precision,
        sam_padding=wanted.sam_padding or "keep",
        overrides=wanted.overrides,
        name=name,
        device=device,
    )
    return LiveTeacher(teacher, have, tuple(sorted(set(levels or have))))
