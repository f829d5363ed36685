"""The student to export, and what its run knows of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sak.checkpoints.store import WEIGHTS, load_student
from sak.errors import SakError, UsageError
from sak.student.student import Student

_EMA = "ema"


@dataclass(frozen=True)
class Source:
    """A trained student, the folder it was read from, and `run.json` where there is one."""

    student: Student
    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)


def find_source(
    place: Path, checkpoint: Literal["best", "last"], *, averaged: bool, image_size: tuple[int, int] | None
) -> Source:
    """The student of a run's directory or a checkpoint's folder; UsageError where there is none."""
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder; give a run's directory, or a checkpoint's folder")
    about = _about(place)
    if "parts" in about:
        parts = ", ".join(str(place / part) for part in about["parts"].values())
        raise UsageError(f"{place} holds a network for each task; export them one by one: {parts}")
    folder = _checkpoint(place, checkpoint)
    if averaged:
        folder = folder / _EMA
        if not folder.is_dir():
            raise UsageError(f"{folder} is not there: the run has no averaged weights (training.ema)")
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{folder} holds no student ({WEIGHTS}); runs of distill and finetune and imported checkpoints do, a "
            "probe's teacher is not ours to export"
        )
    return Source(load_student(folder, image_size=image_size).eval(), folder, {**about, "columns": _columns(about)})


def _columns(about: Mapping[str, Any]) -> list[str]:
    """The columns that were read by the run, or by the one it started from, as far as that is still there."""
    own: list[str] = about.get("reads", {}).get("columns", [])
    init = Path(str(about.get("init", "")))
    if own or init.parent.name != "checkpoints":
        return own
    return _columns(_about(init.parent.parent))


def _checkpoint(place: Path, checkpoint: str) -> Path:
    if not (place / "checkpoints").is_dir():
        return place
    for name in (checkpoint, "last"):
        if (place / "checkpoints" / name).is_dir():
            return place / "checkpoints" / name
    raise UsageError(f"{place} has no checkpoint yet; let it train on with --resume")


def _about(place: Path) -> dict[str, Any]:
    path = place / "run.json"
    if not path.is_file():
        return {}
    try:
        about: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise SakError(f"{path} is damaged ({error}); export its checkpoint's folder instead") from error
    return about
