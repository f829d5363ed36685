"""Frozen teachers: their recipes, a table of named ones, and one module per library.

The names below load what they need when they are first used: recipe and registry import neither torch nor a library.
"""

from typing import TYPE_CHECKING

from sak import lazy_names

if TYPE_CHECKING:
    from sak.teachers.build import build_teacher as build_teacher
    from sak.teachers.build import teacher_facts as teacher_facts
    from sak.teachers.recipe import TeacherFacts as TeacherFacts
    from sak.teachers.recipe import TeacherRecipe as TeacherRecipe
    from sak.teachers.registry import TEACHERS as TEACHERS
    from sak.teachers.registry import list_teachers as list_teachers
    from sak.teachers.registry import teacher_recipe as teacher_recipe
    from sak.teachers.registry import weights_available as weights_available
    from sak.teachers.teacher import TEACHER_REVISION as TEACHER_REVISION
    from sak.teachers.teacher import Teacher as Teacher

__getattr__ = lazy_names(
    __name__,
    {
        "sak.teachers.build": ("build_teacher", "teacher_facts"),
        "sak.teachers.recipe": ("TeacherFacts", "TeacherRecipe"),
        "sak.teachers.registry": ("TEACHERS", "list_teachers", "teacher_recipe", "weights_available"),
        "sak.teachers.teacher": ("TEACHER_REVISION", "Teacher"),
    },
)
