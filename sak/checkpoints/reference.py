"""The authors' checkpoints, read and written: every key of their state dicts is one of ours under another name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sak.checkpoints.store import save_student, student_from_tensors
from sak.errors import SakError, UsageError
from sak.features import default_levels
from sak.student.config import Fusion, StudentConfig
from sak.student.router import GateNoise
from sak.student.sizes import PATCH, StemSize
from sak.student.stem import resample_position
from sak.student.student import Student
from sak.tasks import dataset as dataset_of
from sak.weight_files import read_tensors


class Layout:
    """A state dict of the authors, read for sizes and names; `SakError` where it is none."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.prefix = "backbone." if any(key.startswith("backbone.") for key in state) else ""
        self.state = state
        for needed in ("vit.cls_token", "vit.pos_embed", "vit.blocks.0.norm1.weight"):
            if self.prefix + needed not in state:
                raise SakError(
                    f"not the authors' layout: no {self.prefix}{needed}; its keys begin with "
                    f"{', '.join(list(state)[:3]) or 'nothing'}"
                )

    def _found(self, pattern: str) -> list[tuple[str, ...]]:
        """Groups of the pattern in all keys behind the prefix, each once, in the file's order."""
        compiled = re.compile(re.escape(self.prefix) + pattern)
        matches = (compiled.fullmatch(key) for key in self.state)
        return list(dict.fromkeys(match.groups() for match in matches if match))

    def has(self, part: str) -> bool:
        """Whether there is such a part: tsap, ts_aligners, mor."""
        return any(key.startswith(f"{self.prefix}{part}.") for key in self.state)

    @property
    def width(self) -> int:
        """Channels of the stem."""
        return self.state[self.prefix + "vit.cls_token"].shape[-1]

    @property
    def depth(self) -> int:
        """Blocks of the stem."""
        return len(self._found(r"vit\.blocks\.(\d+)\.norm1\.weight"))

    @property
    def patches(self) -> int:
        """Patches that the position embedding is for."""
        return self.state[self.prefix + "vit.pos_embed"].shape[1] - 1

    def down_ratio(self) -> int:
        """The stem's width over the adapters'; 4 where there are none."""
        keys = [f"{self.prefix}tsap.{name}.0.down.weight" for (name,) in self._paths()]
        if not keys:
            return 4
        hidden = self.state[keys[0]].shape[0]
        if not hidden or self.width % hidden:
            raise SakError(f"{keys[0]} is {tuple(self.state[keys[0]].shape)}: {hidden} do not divide {self.width}")
        return self.width // hidden

    def _paths(self) -> list[tuple[str, ...]]:
        return self._found(r"tsap\.([^.]+)\.0\.down\.weight")

    def levels(self) -> tuple[int, ...] | None:
        """Tapped blocks counted from 1, from the parts that have one module a level."""
        blocks = {int(block) for (block,) in self._found(r"(?:out_norms|ts_aligners|mor)\.(\d+)_.*")}
        return tuple(sorted(block + 1 for block in blocks)) or default_levels(self.depth)

    def teachers_in_file_order(self) -> tuple[str, ...]:
        """Teachers as the file lists them, which in a sorted file is not the order of the experts."""
        named = self._paths() or self._found(r"ts_aligners\.\d+_([^.]+)\.weight")
        return tuple(name for (name,) in named)

    def teachers(self, names: Sequence[str]) -> dict[str, int | None]:
        """The named teachers, which must be the layout's, with their widths."""
        _same_names("teachers", names, self.teachers_in_file_order())
        return {name: self._teacher_width(name) for name in names}

    def _teacher_width(self, name: str) -> int:
        aligners = self._found(rf"(ts_aligners\.\d+_{re.escape(name)}\.weight)")
        return self.state[self.prefix + aligners[0][0]].shape[0] if aligners else self.width

    def tasks(self, names: Sequence[str] | None) -> dict[str, int]:
        """Tasks and their heads' channels; `names`, where given, must be the layout's and give the order."""
        matches = (re.fullmatch(r"heads\.([^.]+)\.last_conv\.weight", key) for key in self.state)
        channels = {match[1]: self.state[match[0]].shape[0] for match in matches if match}
        _same_names("tasks", channels if names is None else names, channels)
        return {name: channels[name] for name in names or channels}

    def fusion(self) -> Fusion:
        """What the heads read: routers where there are any, else the paths' sum, else the stem."""
        if self.has("mor") or not self.tasks(None):
            return "mor"
        return "sum" if self.has("tsap") else "none"


def _same_names(what: str, given: Iterable[str], present: Iterable[str]) -> None:
    given, present = list(given), list(present)
    if sorted(given) != sorted(present):
        raise UsageError(
            f"the state dict has the {what} {', '.join(present) or '(none)'}; got {', '.join(given) or '(none)'}"
        )


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
    where = f"{int(level) - 1}_{name}"
    if part == "routers":
        return f"mor.{where}.router.module.{leaf.removeprefix('net.')}"
    return f"{_PARTS[part]}.{where}.{leaf}"


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
