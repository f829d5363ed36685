"""Our own checkpoints: a safetensors file whose header says which student it is, and the same as JSON beside it."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sak.checkpoints.position import position_prefix, resample_position
from sak.errors import SakError
from sak.student import Student, StudentConfig, parameter_counts
from sak.student.swin import SwinStem

WEIGHTS = "student.safetensors"
DESCRIPTION = "student.json"
_FORMAT = "sak-student-1"
_POSITION = "stem.vit.pos_embed"


def save_student(student: Student, folder: Path) -> Path:
    """Write `student.safetensors` and `student.json` into the folder, which is made; returns the weights file.

    Each file appears whole or not at all. The weights file alone is the checkpoint: its header holds the
    configuration. The JSON file says the same to people and tools, and is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": _FORMAT, "config": student.config.resolved().to_json()}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in student.state_dict().items()}
    header = {"format": _FORMAT, "config": json.dumps(description["config"])}
    write_whole(folder / WEIGHTS, lambda scratch: save_file(tensors, scratch, metadata=header))
    text = json.dumps(description | {"weights": WEIGHTS, "parameters": parameter_counts(student)}, indent=2)
    write_whole(folder / DESCRIPTION, lambda scratch: scratch.write_text(text + "\n", encoding="utf-8"))
    return folder / WEIGHTS


def load_student(path: Path, *, image_size: tuple[int, int] | None = None) -> Student:
    """The student of a checkpoint folder or weights file, on the CPU; nothing is downloaded.

    With another `image_size` (height, width) the position embedding is resampled; see `resample_position`.
    """
    file = path / WEIGHTS if path.is_dir() else path
    config = read_config(file)
    tensors = load_file(file)
    if image_size is not None:
        source = config.grid
        config = StudentConfig.from_json(config.to_json() | {"image_size": image_size})
        if _POSITION in tensors:
            prefix = position_prefix(config.size)
            moved = resample_position(tensors[_POSITION], config.grid, source=source, prefix=prefix)
            tensors[_POSITION] = moved
    return student_from_tensors(config, tensors, origin=str(file))


def read_config(file: Path) -> StudentConfig:
    """The configuration in a weights file's header; `SakError` where the file is missing, cut off or not ours."""
    if not file.is_file():
        raise SakError(f"{file}: no checkpoint here; give a folder with {WEIGHTS}, or that file")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
    except SafetensorError as error:
        raise SakError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    if header.get("format") != _FORMAT:
        raise SakError(
            f"{file}: format {header.get('format')!r}, wanted {_FORMAT!r}; the authors' files come in through "
            "sak-cli import-checkpoint"
        )
    return StudentConfig.from_json(json.loads(header["config"]))


def student_from_tensors(
    config: StudentConfig, tensors: Mapping[str, Tensor], *, origin: str, name: Callable[[str], str] = str
) -> Student:
    """A student that holds exactly these tensors, under its own keys or what `name` makes of them.

    `SakError` names keys and shapes that do not fit, as `tensors` calls them.
    """
    with torch.device("meta"):
        student = Student(config)
    wanted = {name(key): (key, tuple(tensor.shape)) for key, tensor in student.state_dict().items()}
    for word, keys in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if keys:
            raise SakError(f"{origin}: {word} {', '.join(sorted(keys)[:3])} ({len(keys)} such keys)")
    for theirs, (_, shape) in wanted.items():
        if tuple(tensors[theirs].shape) != shape:
            raise SakError(f"{origin}: {theirs} is {tuple(tensors[theirs].shape)}, the student needs {shape}")
    student.load_state_dict({key: tensors[theirs] for theirs, (key, _) in wanted.items()}, assign=True)
    if isinstance(student.stem, SwinStem):
        student.stem.fill_buffers()
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
