"""Weights of one student carried into another: stage 1 of the paper into stage 2."""

from dataclasses import dataclass

import torch

from sak.checkpoints.store import POSITION, move_position
from sak.errors import SakError
from sak.student.student import Student
from sak.variants.lora import LORA_KEYS

_TASK_PARTS = ("routers.", "heads.")


@dataclass(frozen=True)
class Transfer:
    """What became of every tensor, by the student's own keys.

    Attributes:
        copied: taken from the source as they are.
        resampled: taken from the source, moved to another grid.
        untouched: not in the source (routers, heads, LoRA); as the target was built.
        dropped: routers and heads of the source for tasks that the target has not.
    """

    copied: tuple[str, ...]
    resampled: tuple[str, ...]
    untouched: tuple[str, ...]
    dropped: tuple[str, ...]


@torch.no_grad()
def transfer(source: Student, target: Student) -> Transfer:
    """Copy all that the source has into the target, in place; the target may have routers and heads of its own.

    The position embedding is resampled where the grids differ; see `resample_position`. `SakError` names the first
    tensors that have no place or another shape.
    """
    given, wanted = source.state_dict(), target.state_dict()
    dropped = tuple(key for key in given if key not in wanted)
    untouched = tuple(key for key in wanted if key not in given)
    strangers = [key for key in dropped if not key.startswith(_TASK_PARTS)]
    missing = [key for key in untouched if not key.startswith(_TASK_PARTS) and not key.endswith(LORA_KEYS)]
    if strangers or missing:
        raise SakError(
            f"the two students differ in more than tasks, such as {', '.join((strangers + missing)[:3])}; build the "
            "second with the teachers, levels, adapters and aligners of the first"
        )
    resampled = (POSITION,) if move_position(given, source.config, target.config.grid) else ()
    copied = tuple(key for key in wanted if key in given and key not in resampled)
    for key in (*copied, *resampled):
        if given[key].shape != wanted[key].shape:
            raise SakError(f"{key} is {tuple(given[key].shape)} in the source and {tuple(wanted[key].shape)} here")
        wanted[key].copy_(given[key])
    return Transfer(copied=copied, resampled=resampled, untouched=untouched, dropped=dropped)
