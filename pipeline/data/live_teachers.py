"""Teachers that run beside the training: instead of their cached features, along with those of others, or at a task.

They give their own maps: nothing is encoded, nothing projected. `sak.teachers.build` is imported when the first one is
built, and not otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.cache.column_codec import reduction_of
from pipeline.cache.folder import Cache
from pipeline.cache.key import explain_difference
from pipeline.cache.manifest import Manifest
from pipeline.cache.projection import area_pool
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.selection import select_columns
from pipeline.cache.spec import CacheSpec
from sak.errors import SakError, UsageError
from sak.features import FeatureMaps
from sak.losses.projection import Grid
from sak.student.config import StudentConfig
from sak.teachers.recipe import OtherTeacherError, TeacherRecipe

if TYPE_CHECKING:
    from sak.teachers import Teacher


@dataclass(frozen=True)
class LiveTeacher:
    """One of them, the levels of its own that are wanted, and the grid its targets are reduced to.

    `area` is the student's grid where the cache holds area means, which are another loss; None elsewhere.
    """

    teacher: "Teacher"
    wanted: tuple[int, ...]
    area: Grid | None = None

    def targets(self, maps: FeatureMaps) -> FeatureMaps:
        """What is compared with of the teacher's maps (B, C, h, w)."""
        chosen = tuple(maps[level] for level in self.wanted)
        return FeatureMaps(self.wanted, chosen if self.area is None else tuple(area_pool(m, self.area) for m in chosen))


@dataclass(frozen=True)
class LiveTeachers:
    """Several frozen teachers by name, each called once for the whole batch, without gradients; a feature source.

    `normalised` says that images come with ImageNet's normalisation, as augmented ones do, and not in [0, 1], as views.
    """

    teachers: Mapping[str, LiveTeacher]
    normalised: bool = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, FeatureMaps]:
        """(B, 3, H, W) to each teacher's wanted levels."""
        return {
            name: live.targets(live.teacher.from_imagenet(images) if self.normalised else live.teacher(images))
            for name, live in self.teachers.items()
        }

    @property
    def random(self) -> list[str]:
        """Those whose weights know nothing; every listing and report says so."""
        return [name for name, live in self.teachers.items() if live.teacher.is_random]

    def describe(self) -> dict[str, dict[str, Any]]:
        """For a run's `run.json`."""
        return {
            name: {
                "model": live.teacher.model,
                "weights_sha256": live.teacher.weights_sha256,
                "levels": list(live.wanted),
                "precision": live.teacher.recipe.precision,
                "random": live.teacher.is_random,
            }
            for name, live in self.teachers.items()
        }


def manifest_of(cache: str | Cache, name: str) -> Manifest:
    """The manifest of a teacher's column, however much of it is extracted; UsageError where there is none."""
    (columns,) = select_columns(Cache.open(cache), [name]).values()
    return columns[0].manifest


def build_from_manifest(manifest: Manifest, device: str | torch.device = "cpu") -> "Teacher":
    """The teacher that made a column; SakError where its weights or our code are not those of the column any more."""
    from sak.teachers import build_teacher

    try:
        return build_teacher(manifest.recipe, image_size=manifest.view_size, device=device)
    except OtherTeacherError as error:
        raise SakError(
            f"columns/{manifest.name}: made from {error.what} {error.wanted[:12]}, here it is {error.found[:12]}; "
            "bring that one back, or extract the teacher again"
        ) from error


def live_from_manifest(manifest: Manifest, levels: Sequence[int] | None, device: torch.device) -> LiveTeacher:
    """The teacher that made a column, at some of its levels; see `build_from_manifest`."""
    wanted = _wanted(manifest.recipe, levels)
    reduction = reduction_of(manifest.document, manifest.grid)
    area = reduction.student_grid if reduction.effective == "area" else None
    return LiveTeacher(build_from_manifest(manifest, device), wanted, area)


def live_from_spec(
    spec: CacheSpec, name: str, levels: Sequence[int] | None, cached: FeatureCache, device: torch.device
) -> LiveTeacher:
    """A spec's teacher, which need not be in the cache; UsageError where the spec has other views than the cache."""
    from sak.teachers import build_teacher

    differing = explain_difference(cached.view_policy.model_dump(mode="json"), spec.views.model_dump(mode="json"))
    if differing:
        fields = "; ".join(
            f"{field}: cache {cached_value!r}, spec {value!r}" for field, cached_value, value in differing
        )
        raise UsageError(
            f"{name}: the spec has other views than {cached.cache}: {fields}; use a spec of the same views"
        )
    recipe = spec.recipe(name)
    wanted = _wanted(recipe, levels)
    return LiveTeacher(build_teacher(recipe, image_size=spec.views.size, device=device), wanted)


def _wanted(recipe: TeacherRecipe, levels: Sequence[int] | None) -> tuple[int, ...]:
    """The levels asked for, ascending, by default all; UsageError for one that the teacher does not have."""
    available = recipe.levels or ()
    unknown = [level for level in levels or () if level not in available]
    if unknown:
        raise UsageError(
            f"{recipe.name} has levels {', '.join(map(str, available))}, not {', '.join(map(str, unknown))}"
        )
    return tuple(sorted(set(levels or available)))


def live_for_student(
    student: StudentConfig,
    recipes: Mapping[str, TeacherRecipe],
    names: Sequence[str] | None,
    device: torch.device,
    precision: str = "auto",
) -> LiveTeachers:
    """A distilled student's teachers (or those `names` of them) for normalised images of its size, on the device.

    With `auto` a teacher that was extracted in fp32 runs in bf16 where a CUDA device has it. SakError, one line, where
    nothing says how to build a teacher, its weights are missing or others, or it does not fit the student.
    """
    for name in names or ():
        if name not in student.teachers:
            raise UsageError(
                f"--teachers: the student knows no {name!r}; its teachers are {', '.join(student.teachers)}"
            )
    wanted = [name for name in student.teachers if names is None or name in names]
    missing = [name for name in wanted if name not in recipes]
    if missing:
        raise UsageError(
            f"nothing says how to build the teacher {missing[0]}: name a cache spec that has it with --spec, or train "
            "without teachers (--no-distill)"
        )
    built = {name: _build_for(student, name, recipes[name], device, precision) for name in wanted}
    return LiveTeachers({name: LiveTeacher(teacher, teacher.levels) for name, teacher in built.items()}, True)


def _build_for(
    student: StudentConfig, name: str, recipe: TeacherRecipe, device: torch.device, precision: str
) -> "Teacher":
    from sak.teachers import build_teacher

    chosen = recipe.precision if precision == "auto" else precision
    if precision == "auto" and chosen == "fp32" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        chosen = "bf16"
    teacher = build_teacher(replace(recipe, precision=chosen), image_size=student.image_size, device=device)
    if len(teacher.levels) != len(student.tapped):
        raise UsageError(
            f"teacher {name} has levels {teacher.levels}, the student {student.tapped}: they are paired by position; "
            "name as many in the spec"
        )
    if teacher.width != student.teacher_widths[name]:
        raise UsageError(
            f"teacher {name} has {teacher.width} channels, the student answers to {student.teacher_widths[name]}; "
            "name the spec of the teachers it was distilled from"
        )
    return teacher
