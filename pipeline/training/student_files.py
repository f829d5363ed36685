"""A student in a run's checkpoints: the two functions that the loop is given."""

from pathlib import Path

import torch
from torch import nn

from sak.checkpoints.store import load_student, save_student
from sak.errors import UsageError
from sak.student.student import Student


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a student's checkpoint."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    save_student(model, folder)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a student that is there; UsageError where it is another student."""
    if not isinstance(model, Student):
        raise TypeError(f"a student, not {type(model).__name__}")
    saved = load_student(folder)
    try:
        model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{folder} holds another student than the recipe asks for; put the recipe back, or start a new run"
        ) from error
