"""The authors' state-dict layout, in and out: every key of theirs is one of ours under another name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sak.checkpoints.layout import Layout
from sak.checkpoints.position import resample_position
from sak.checkpoints.store import save_student, student_from_tensors
from sak.errors import UsageError
from sak.student import PATCH, StemSize, Student, StudentConfig
from sak.student.config import GateNoise
from sak.tasks import dataset as dataset_of
from sak.weight_files import read_tensors

_BACKBONE = "backbone."
_PARTS = {"norms": "out_norms", "aligners": "ts_aligners"}


def reference_key(key: str, *, with_tasks: bool) -> str:
    """The authors' name of one of our keys; theirs count blocks from 0, and with tasks prefix all but the heads."""
    part, _, rest = key.partition(".")
    if part == "heads":
        return f"heads.{rest.replace('.fuse.', '.linear_fuse.').replace('.out.', '.last_conv.')}"
    return (_BACKBONE if with_tasks else "") + _backbone_key(part, rest)


def _backbone_key(part: str, rest: str) -> str:
    if part in ("stem", "paths"):
        return rest if part == "stem" else f"tsap.{rest}"
    level, name, leaf = rest.split(".", 2)
    place = f"{int(level) - 1}_{name}"
    if part == "routers":
        return f"mor.{place}.router.module.{leaf.removeprefix('net.')}"
    return f"{_PARTS[part]}.{place}.{leaf}"


def to_reference_state_dict(student: Student) -> dict[str, Tensor]:
    """The student's tensors under the authors' keys, in their order; `UsageError` while it has LoRA layers."""
    if student.config.lora is not None:
        raise UsageError("the authors' layout has no LoRA: merge it first (sak.student.without_lora)")
    with_tasks = bool(student.config.tasks)
    return {reference_key(key, with_tasks=with_tasks): tensor for key, tensor in student.state_dict().items()}


def from_reference_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    num_heads: int,
    teachers: Sequence[str],
    tasks: Sequence[str] | None = None,
    dataset: str | None = None,
    gate_noise: GateNoise = "image",
) -> Student:
    """The student of the authors' layout, with copies of its tensors, on their device.

    Width, depth, levels, down ratio, aligners, routers and heads are read from the tensors.

    Args:
        state_dict: of stage 1 (no prefix) or stage 2 (`backbone.` and `heads.`).
        image_size: (height, width) the student shall take; the position embedding is resampled as the published code
            does where its number of tokens differs.
        num_heads: attention heads, which the tensors do not tell.
        teachers: all of the layout's, in the order of the routers' experts, which a sorted file does not tell.
        tasks: all of the layout's, where they are to be checked or put in order.
        dataset: checks each head's channels against this data set's tasks.
        gate_noise: for training on; evaluation has none. The published code draws per pixel.

    Raises:
        SakError: the layout does not fit; names the keys.
    """
    layout = Layout(state_dict)
    config = StudentConfig(
        image_size=image_size,
        stem=StemSize(width=layout.width, depth=layout.depth, heads=num_heads),
        weights="checkpoint",
        teachers=layout.teachers(teachers),
        tasks=layout.tasks(tasks),
        levels=layout.levels(),
        adapters=layout.has("tsap"),
        down_ratio=layout.down_ratio(),
        aligners=layout.has("ts_aligners"),
        fusion=layout.fusion(),
        gate_noise=gate_noise,
    )
    _check_dataset(config, dataset)
    tensors = {key: tensor.detach().clone() for key, tensor in state_dict.items()}
    position = f"{layout.prefix}vit.pos_embed"
    tensors[position] = resample_position(tensors[position], config.grid)
    with_tasks = bool(layout.prefix)
    return student_from_tensors(
        config, tensors, origin="the authors' layout", name=lambda key: reference_key(key, with_tasks=with_tasks)
    )


def read_reference_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one of the authors' files, safetensors or PyTorch, in its order; objects are never unpickled."""
    return read_tensors(path)


def import_checkpoint(
    file: Path,
    out: Path,
    *,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    teachers: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one of the authors' files as a checkpoint of ours into the folder `out`; returns the weights file.

    Args:
        file: .safetensors, or a PyTorch file.
        out: refused where it exists, unless `overwrite`.
        image_size: (height, width); None: the data set's, else the square that the position embedding is for.
        num_heads: None: 64 channels a head, as ViT S, B and L have.
        teachers: in the experts' order; None: the file's order, which a safetensors file with several has lost.
        tasks: see `from_reference_state_dict`.
        dataset: see `from_reference_state_dict`.
        overwrite: replace what is in `out`.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out is the folder for the checkpoint")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; choose another --out, or --overwrite")
    state = read_reference_file(file)
    layout = Layout(state)
    student = from_reference_state_dict(
        state,
        image_size=image_size or _image_size(layout, dataset),
        num_heads=max(1, layout.width // 64) if num_heads is None else num_heads,
        teachers=_file_order(layout, file) if teachers is None else teachers,
        tasks=tasks,
        dataset=dataset,
    )
    return save_student(student, out)


def _image_size(layout: Layout, name: str | None) -> tuple[int, int]:
    if name is not None and layout.tasks(None):
        return dataset_of(name).input_size
    side = round(layout.patches**0.5)
    if side * side != layout.patches:
        raise UsageError(
            f"the position embedding is for {layout.patches} patches, no square: give --image-size HEIGHT WIDTH"
        )
    return side * PATCH, side * PATCH


def _file_order(layout: Layout, file: Path) -> tuple[str, ...]:
    names = layout.teachers_in_file_order()
    if file.suffix == ".safetensors" and len(names) > 1:
        raise UsageError(f"{file} has the teachers {', '.join(names)} but not their order: give --teachers in order")
    return names


def _check_dataset(config: StudentConfig, name: str | None) -> None:
    if name is None:
        return
    rows = dataset_of(name)
    for task, channels in config.tasks.items():
        if rows[task].channels != channels:
            raise UsageError(f"the head of {task} has {channels} channels, {name} has {rows[task].channels}")
