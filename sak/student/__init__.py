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
from sak.student.sizes import PATCH, STEMS, StemSize
from sak.student.student import Gates, Student, StudentOutput

__all__ = [
    "PATCH",
    "STEMS",
    "Gates",
    "Lora",
    "StemSize",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "build_student",
    "many_to_one",
    "multi_task_baseline",
    "new_student",
    "parameter_counts",
    "single_task_baseline",
    "without_lora",
]
