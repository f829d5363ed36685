"""A student as it leaves: what only training needs is taken off."""

from copy import deepcopy
from dataclasses import replace

from sak.checkpoints.store import student_from_tensors
from sak.student import Student, without_lora


def deployable(student: Student) -> Student:
    """A new student in eval mode that gives the same predictions: no aligners, LoRA merged, nothing frozen.

    Its `teachers` are then the paths themselves, in the student's own widths; a many-to-one student keeps its stem and
    heads alone. Tensors are shared with the given student where they are unchanged.
    """
    plain = without_lora(deepcopy(student)) if student.config.lora is not None else student
    config = plain.config
    stripped = replace(
        config,
        weights="checkpoint",
        teachers=dict.fromkeys(config.teachers) if config.adapters else {},
        aligners=False,
        freeze="none",
        gradient_checkpointing=False,
    )
    kept = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("aligners.")}
    return student_from_tensors(stripped, kept, origin="the student to export").eval()
