"""Take the student away: safetensors with the code that reads it, torch.export or ONNX; checked, with a model card."""

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from pipeline.dense.task_model import Checkpoint, check_options
from pipeline.export.card import find_source, write_card
from pipeline.export.formats import FORMATS, Exported
from sak.checkpoints.store import deployable
from sak.errors import SakError, UsageError, nearest
from sak.student.extractor import OUTPUTS, Deployed, Outputs
from sak.student.stem import Stem
from sak.student.student import Student

TOLERANCE = 1e-4
"""Largest difference of an export's outputs from the student's, relative where outputs are larger than one."""


@dataclass(frozen=True)
class Export:
    """What was written: its folder, format, outputs and (height, width), and how far its outputs are from the run's."""

    folder: Path
    format: str
    outputs: tuple[str, ...]
    image_size: tuple[int, int] | None
    difference: float


def run_export(  # noqa: PLR0913 (the flags of the command)
    run: str | Path,
    out: str | Path,
    *,
    to: str,
    outputs: str | None = None,
    checkpoint: Checkpoint = "best",
    averaged: bool = False,
    image_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> Export:
    """`sak-cli export`: write the student of a run or checkpoint into the folder `out`, and check it against the run.

    Args:
        run: of distill or finetune, or a checkpoint's folder.
        out: refused where it exists, unless `overwrite`.
        to: safetensors, torch-export or onnx.
        outputs: predictions (the default where there are heads), features or task-features.
        checkpoint: of a run; `last` where it has no `best`.
        averaged: the averaged weights (`training.ema`) instead of the last ones.
        image_size: (height, width) other than the trained one; the position embedding is resampled.
        dynamic_size: take images of any size in multiples of 16 (torch-export, onnx); the batch is always free.
        overwrite: replace an export that is there.
        say: what to tell while it takes its time.

    Raises:
        SakError: no student there, a format or option that does not go together, or outputs that are not the run's.
    """
    check_options(checkpoint)
    if to not in FORMATS:
        raise UsageError(f"--to: no format {to!r}{nearest(to, FORMATS)}")
    folder = Path(out)
    source = find_source(Path(run), checkpoint, averaged=averaged, image_size=image_size)
    wanted = _outputs(outputs, source.student)
    with _whole_folder(folder, overwrite) as scratch:
        module = Deployed(_prepared(source.student, to, dynamic_size), wanted)
        if say is not None:
            say(f"{to}: {', '.join(module.names[:6])}{' ...' if len(module.names) > 6 else ''}")
        exported = FORMATS[to](module, scratch, dynamic_size)
        difference = check(source.student, module, exported, dynamic_size)
        write_card(scratch, source, module, exported, dynamic_size, difference)
    size = None if dynamic_size else source.student.config.image_size
    return Export(folder, to, module.names, size, difference)


@torch.no_grad()
def check(trained: Student, module: Deployed, exported: Exported, dynamic_size: bool) -> float:
    """The largest difference of the export from the trained student's own outputs; SakError above `TOLERANCE`."""
    expected = Deployed(trained.eval(), module.outputs)
    height, width = trained.config.image_size
    largest = 0.0
    for batch in (1, 2):
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        largest = max(largest, _difference(exported.run(images), expected(images)))
    if dynamic_size:
        step = trained.config.size.multiple
        other = torch.randn(1, 3, height + step, width + 2 * step, generator=torch.Generator().manual_seed(3))
        largest = max(largest, _difference(exported.run(other), module(other)))
    if not largest <= TOLERANCE:
        raise SakError(f"the exported {exported.file} differs from the run by {largest:.1e}; it was not kept")
    return largest


def _difference(exported: Any, expected: tuple[Tensor, ...]) -> float:
    pairs = zip(exported, expected, strict=True)
    return max(float((ours - right).abs().max() / right.abs().max().clamp(min=1)) for ours, right in pairs)


def _prepared(trained: Student, to: str, dynamic_size: bool) -> Student:
    student = deployable(trained)
    if dynamic_size:
        if to == "safetensors":
            raise UsageError("--dynamic-size is for torch-export and onnx; give safetensors an --image-size")
        if not isinstance(student.stem, Stem):
            raise UsageError("--dynamic-size: a Swin has windows of one image size; export it with --image-size")
        student.stem.accept_any_size()
    return student


def _outputs(wanted: str | None, student: Student) -> Outputs:
    if wanted is None:
        return "predictions" if student.config.tasks else "features"
    for outputs in OUTPUTS:
        if wanted == outputs:
            return outputs
    raise UsageError(f"--outputs: no {wanted!r}{nearest(wanted, OUTPUTS)}")


@contextmanager
def _whole_folder(folder: Path, overwrite: bool) -> Any:
    """A scratch folder that becomes `folder` in one piece."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise UsageError(f"{folder} exists and is not empty; choose another --out, or --overwrite")
        if not (folder / "README.md").is_file() or not (folder / "export.json").is_file():
            raise UsageError(f"{folder} is not an export (no export.json); it is not overwritten, choose another")
    scratch = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
