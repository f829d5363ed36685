"""The student: stem (TAS), adapter paths (TSAP), aligners, routers (MoR), heads, and building them.

The names below load their modules when they are first used: parts of the student import each other one by one.
"""

from typing import TYPE_CHECKING

from sak import lazy_names

if TYPE_CHECKING:
    from sak.student.build import build_student as build_student
    from sak.student.build import many_to_one as many_to_one
    from sak.student.build import multi_task_baseline as multi_task_baseline
    from sak.student.build import new_student as new_student
    from sak.student.build import parameter_counts as parameter_counts
    from sak.student.build import single_task_baseline as single_task_baseline
    from sak.student.build import without_lora as without_lora
    from sak.student.config import Lora as Lora
    from sak.student.config import StudentConfig as StudentConfig
    from sak.student.router import Gates as Gates
    from sak.student.sizes import PATCH as PATCH
    from sak.student.sizes import STEMS as STEMS
    from sak.student.sizes import Size as Size
    from sak.student.sizes import StemSize as StemSize
    from sak.student.student import Student as Student
    from sak.student.student import StudentOutput as StudentOutput
    from sak.variants.swin import SwinSize as SwinSize

__getattr__ = lazy_names(
    __name__,
    {
        "sak.student.build": (
            "build_student",
            "many_to_one",
            "multi_task_baseline",
            "new_student",
            "parameter_counts",
            "single_task_baseline",
            "without_lora",
        ),
        "sak.student.config": ("Lora", "StudentConfig"),
        "sak.student.router": ("Gates",),
        "sak.student.sizes": ("PATCH", "STEMS", "Size", "StemSize"),
        "sak.student.student": ("Student", "StudentOutput"),
        "sak.variants.swin": ("SwinSize",),
    },
)
