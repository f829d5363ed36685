"""What teachers cost beside a student, in floating-point operations: enough to say when a cache has paid for itself."""

from collections.abc import Mapping
from math import prod

from pipeline.cache.spec import CacheSpec
from sak.teachers.recipe import TeacherFacts, is_sam

_SAM_WINDOW = 14
_SAM_GLOBAL_BLOCKS = 4
_STUDENT_WIDTH, _STUDENT_DEPTH = 768, 12
_ADAPTER_PATH = 13 / 288  # 13 adapters of d^2 operations a token and teacher, beside 12 blocks of 24 d^2


def forward_operations(facts: TeacherFacts, *, windowed: bool = False) -> float:
    """Multiply-adds times two of a ViT's blocks for one image; SAM's are `windowed`, all but four."""
    tokens = prod(facts.grid)
    everywhere = min(_SAM_GLOBAL_BLOCKS, facts.depth) if windowed else facts.depth
    seen = everywhere * tokens + (facts.depth - everywhere) * min(tokens, _SAM_WINDOW**2)
    return facts.depth * 24 * tokens * facts.width**2 + 4 * seen * tokens * facts.width


def step_ratio(spec: CacheSpec, facts: Mapping[str, TeacherFacts]) -> float:
    """A training step with all teachers live over one without, for a B student on the spec's student grid.

    4.1 for the paper's B teachers at 384, 11.1 for L. A step of the student is its forward three times over.
    """
    student = TeacherFacts(_STUDENT_WIDTH, _STUDENT_DEPTH, spec.grid)
    step = 3 * forward_operations(student) * (1 + _ADAPTER_PATH * len(facts))
    teachers = sum(forward_operations(each, windowed=is_sam(spec.teachers[name].model)) for name, each in facts.items())
    return (step + teachers) / step
