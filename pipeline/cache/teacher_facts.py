"""What a spec must know of a teacher before one is built: width, depth and grid."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sak.errors import UsageError

if TYPE_CHECKING:
    from pipeline.cache.spec import TeacherSpec

_SAM = re.compile(r"^segment_anything/|/samvit_|/(demo-)?sam\b")


@dataclass(frozen=True)
class TeacherFacts:
    """Channels, blocks, and (height, width) of the feature maps for the spec's views."""

    width: int
    depth: int
    grid: tuple[int, int]


def is_sam(model: str) -> bool:
    """Whether a model is SAM's image encoder, which pads its input to a square and has a grid of its own."""
    return _SAM.search(model) is not None


def teacher_facts(teacher: "TeacherSpec", view_size: tuple[int, int], name: str) -> TeacherFacts:
    """The facts of a teacher that sees views of `view_size` (height, width), from its shapes alone; reads no weights.

    UsageError, which begins with `name`, for a model that its library does not have or a size that it cannot take.
    """
    from sak.teachers.build import build_teacher

    try:
        built = build_teacher(
            teacher.model,
            weights=teacher.weights,
            image_size=view_size,
            input_size=teacher.input_size,
            overrides=teacher.overrides,
            sam_padding=teacher.sam_padding or "keep",
            levels=(1,),
            name=name,
            device="meta",
        )
    except UsageError as error:
        text = str(error)
        raise UsageError(text if text.startswith(name) else f"{name}: {text}") from error
    return TeacherFacts(built.width, built.depth, built.grid(view_size))
