"""Frozen teachers: their recipes, a table of named ones, and one module per library.

Names are loaded at their first use; `__init__.pyi` has their types. Importing this imports no torch.
"""

from sak import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "sak.teachers.build": "build_teacher teacher_facts",
        "sak.teachers.recipe": "TeacherFacts TeacherRecipe",
        "sak.teachers.registry": "TEACHERS list_teachers teacher_recipe weights_available",
        "sak.teachers.teacher": "TEACHER_REVISION Teacher",
    },
)
