"""Frozen teachers: their recipes, a table of named ones, and one module per library.

The names below load what they need when they are first used: recipe and registry import neither torch nor a library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "TEACHERS": "registry",
    "TEACHER_REVISION": "teacher",
    "Teacher": "teacher",
    "TeacherFacts": "recipe",
    "TeacherRecipe": "recipe",
    "build_teacher": "build",
    "list_teachers": "registry",
    "teacher_facts": "build",
    "teacher_recipe": "registry",
    "weights_available": "registry",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
