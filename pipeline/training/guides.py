"""The teachers that run beside fine-tuning, on the augmented crop itself: as the distilled student knew them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sak.errors import UsageError
from sak.features import FeatureMaps
from sak.student.config import StudentConfig
from sak.teacher_source import TeacherSource, see

if TYPE_CHECKING:
    from sak.teachers import Teacher

Size = tuple[int, int]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LiveGuides:
    """Frozen teachers by name; called without gradients, each once for the whole batch."""

    teachers: Mapping[str, "Teacher"]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, FeatureMaps]:
        """Normalised images (B, 3, H, W) to each teacher's levels."""
        return {name: see(teacher, images) for name, teacher in self.teachers.items()}

    def describe(self) -> dict[str, Any]:
        """For a run's `run.json`."""
        return {
            name: {
                "model": teacher.model,
                "weights_sha256": teacher.weights_sha256,
                "levels": list(teacher.levels),
                "precision": teacher.facts.precision,
                "random": teacher.is_random,
            }
            for name, teacher in self.teachers.items()
        }


def build_guides(
    student: StudentConfig,
    sources: Mapping[str, TeacherSource],
    names: Sequence[str] | None,
    device: torch.device,
    precision: Precision = "auto",
) -> LiveGuides:
    """The student's teachers (or those `names` of them) for images of its size, on the device.

    With `auto` a teacher that was extracted in fp32 runs in bf16 where a CUDA device has it. SakError, one line, where
    nothing says how to build a teacher, its weights are missing or others, or it does not fit the student.
    """
    for name in names or ():
        if name not in student.teachers:
            raise UsageError(
                f"--teachers: the student knows no {name!r}; its teachers are {', '.join(student.teachers)}"
            )
    wanted = [name for name in student.teachers if names is None or name in names]
    missing = [name for name in wanted if name not in sources]
    if missing:
        raise UsageError(
            f"nothing says how to build the teacher {missing[0]}: name a cache spec that has it with --spec, or train "
            "without teachers (--no-distill)"
        )
    built = {name: _build(sources[name], student, device, precision) for name in wanted}
    for name, teacher in built.items():
        _check(name, teacher, student)
    return LiveGuides(built)


def _build(source: TeacherSource, student: StudentConfig, device: torch.device, precision: Precision) -> "Teacher":
    chosen = source.precision if precision == "auto" else precision
    if precision == "auto" and chosen == "fp32" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        chosen = "bf16"
    return source.build(student.image_size, device=device, precision=chosen)


def _check(name: str, teacher: "Teacher", student: StudentConfig) -> None:
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
