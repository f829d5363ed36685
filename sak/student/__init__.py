"""The student: stem (TAS), adapter paths (TSAP), routers (MoR), heads."""

from sak.student.build import (
    build_student,
    many_to_one,
    multi_task_baseline,
    new_student,
    parameter_counts,
    single_task_baseline,
    without_lora,
)
from sak.student.config import Lora, StudentConfig
from sak.student.sizes import PATCH, STEMS, Size, StemSize
from sak.student.student import Gates, Student, StudentOutput
from sak.student.swin_size import SwinSize

__all__ = [
    "PATCH",
    "STEMS",
    "Gates",
    "Lora",
    "Size",
    "StemSize",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "SwinSize",
    "build_student",
    "many_to_one",
    "multi_task_baseline",
    "new_student",
    "parameter_counts",
    "single_task_baseline",
    "without_lora",
]
