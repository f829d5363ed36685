"""The student: stem (TAS), adapter paths (TSAP), aligners, routers (MoR), heads, and building them.

Names are loaded at their first use; `__init__.pyi` has their types.
"""

from sak import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "sak.student.build": "build_student many_to_one multi_task_baseline "
        "new_student parameter_counts single_task_baseline without_lora",
        "sak.student.config": "Lora StudentConfig",
        "sak.student.router": "Gates",
        "sak.student.sizes": "AnyStemSize PATCH STEMS StemSize",
        "sak.student.student": "Student StudentOutput",
        "sak.variants.swin": "SwinSize",
    },
)
