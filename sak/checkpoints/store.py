"""Our own checkpoints, saved, loaded and carried from one student into another (stage 1 of the paper into stage 2).

A checkpoint is a safetensors file whose header says which student it is, and the same as JSON for people.
"""

import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sak.errors import SakError
from sak.student.build import make_student, parameter_counts, without_lora
from sak.student.config import StudentConfig
from sak.student.stem import position_prefix, resample_position
from sak.student.student import Student
from sak.variants.lora import LORA_KEYS
from sak.variants.swin import SwinStem
from sak.weight_files import fill_buffers

WEIGHTS = "student.safetensors"
_FORMAT = "sak-student-1"
POSITION = "stem.vit.pos_embed"
_TASK_PARTS = ("routers.", "heads.")


def save_student(student: Student, folder: Path) -> Path:
    """Write `student.safetensors` and `student.json` into the folder, which is made; returns the weights file.

    Each file appears whole or not at all. The weights file alone is the checkpoint: its header holds the
    configuration. The JSON file says the same to people and tools, and is written last.
    """
    config = student.config.resolved().to_json()
    return save_checkpoint(student, folder / WEIGHTS, _FORMAT, config, parameters=parameter_counts(student))


def load_student(path: Path, *, image_size: tuple[int, int] | None = None) -> Student:
    """The student of a checkpoint folder or weights file, on the CPU; nothing is downloaded.

    With another `image_size` (height, width) the position embedding is resampled; see `resample_position`.
    """
    file = path / WEIGHTS if path.is_dir() else path
    config = read_config(file)
    tensors = load_file(file)
    if image_size is not None:
        before, config = config, StudentConfig.from_json(config.to_json() | {"image_size": image_size})
        move_position(tensors, before, config.grid)
    return student_from_tensors(config, tensors, origin=str(file))


def move_position(tensors: dict[str, Tensor], config: StudentConfig, grid: tuple[int, int]) -> bool:
    """Resample the position embedding in a student's tensors to another grid; whether there is one and it changed."""
    if POSITION not in tensors:
        return False
    before, prefix = tensors[POSITION], position_prefix(config.size)
    tensors[POSITION] = resample_position(before, grid, source=config.grid, prefix=prefix)
    return tensors[POSITION] is not before


def read_config(file: Path) -> StudentConfig:
    """The configuration in a weights file's header; `SakError` where the file is missing, cut off or not ours."""
    if not file.is_file():
        raise SakError(f"{file}: no checkpoint here; give a folder with {WEIGHTS}, or that file")
    hint = "; the authors' files come in through sak-cli import-checkpoint"
    return StudentConfig.from_json(saved_config(file, _FORMAT, hint))


def student_from_tensors(
    config: StudentConfig, tensors: Mapping[str, Tensor], *, origin: str, name: Callable[[str], str] = str
) -> Student:
    """A student that holds exactly these tensors, under its own keys or what `name` makes of them.

    `SakError` names keys and shapes that do not fit, as `tensors` calls them.
    """
    with torch.device("meta"):
        student = make_student(config)
    wanted = {name(key): (key, tuple(tensor.shape)) for key, tensor in student.state_dict().items()}
    for word, keys in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if keys:
            raise SakError(f"{origin}: {word} {', '.join(sorted(keys)[:3])} ({len(keys)} such keys)")
    for theirs, (_, shape) in wanted.items():
        if tuple(tensors[theirs].shape) != shape:
            raise SakError(f"{origin}: {theirs} is {tuple(tensors[theirs].shape)}, the student needs {shape}")
    student.load_state_dict({key: tensors[theirs] for theirs, (key, _) in wanted.items()}, assign=True)
    if isinstance(student.stem, SwinStem):
        fill_buffers(student.stem.swin)
    return student


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a scratch file beside `path`, and put it in its place once it is on disk."""
    scratch = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        write(scratch)
        _sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def save_checkpoint(module: nn.Module, weights: Path, version: str, config: Mapping[str, Any], **more: Any) -> Path:
    """The module's tensors with format and configuration in the header, then the same as JSON; the weights file."""
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    header = {"format": version, "config": json.dumps(config)}
    write_whole(weights, lambda scratch: save_file(tensors, scratch, metadata=header))
    facts = {"format": version, "config": config, "weights": weights.name, **more}
    text = json.dumps(facts, indent=2) + "\n"
    write_whole(weights.with_suffix(".json"), lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return weights


def saved_config(file: Path, wanted: str, hint: str = "") -> Any:
    """The configuration in a file's header, as JSON; SakError where the file is cut off or of another format."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SakError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    if header.get("format") != wanted:
        raise SakError(f"{file}: format {header.get('format')!r}, wanted {wanted!r}{hint}")
    return json.loads(header["config"])


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
