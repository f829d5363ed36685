"""The teachers known by name: exact weights, licence, sizes. Importing this imports neither torch nor a library."""

from sak.errors import UsageError, nearest
from sak.teachers.info import TeacherInfo
from sak.teachers.table import ROWS

TEACHERS: dict[str, TeacherInfo] = {row.name: row for row in ROWS}
"""By name, in the order of the table."""

_BY_MODEL = {row.model: row for row in ROWS}


def list_teachers() -> list[TeacherInfo]:
    """All named teachers, in the order of the table."""
    return list(TEACHERS.values())


def find_teacher(name: str) -> TeacherInfo | None:
    """The row of a name or of a model string; None for other model strings, UsageError for an unknown name."""
    if "/" not in name and ":" not in name and name not in TEACHERS:
        raise UsageError(
            f"no teacher is named {name!r}{nearest(name, TEACHERS)}; a model string has a library in front"
        )
    return TEACHERS.get(name) or _BY_MODEL.get(name)


def weights_available(teacher: TeacherInfo) -> bool:
    """Whether its pretrained weights are on this machine; looks into the local caches alone, never at the network."""
    return teacher.published().local() is not None
