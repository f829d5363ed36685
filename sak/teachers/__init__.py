"""Frozen teachers: a registry, and one module per library.

The names below load what they need when they are first used: the registry imports neither torch nor a library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sak.teachers.base import TEACHER_REVISION as TEACHER_REVISION
    from sak.teachers.base import Teacher as Teacher
    from sak.teachers.build import build_teacher as build_teacher
    from sak.teachers.info import TeacherInfo as TeacherInfo
    from sak.teachers.registry import TEACHERS as TEACHERS
    from sak.teachers.registry import list_teachers as list_teachers
    from sak.teachers.registry import weights_available as weights_available

_HOMES = {
    "TEACHERS": "registry",
    "TEACHER_REVISION": "base",
    "Teacher": "base",
    "TeacherInfo": "info",
    "build_teacher": "build",
    "list_teachers": "registry",
    "weights_available": "registry",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
