"""What a student is made of: a frozen description that goes into its checkpoint as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import Parameter, signature
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from sak.errors import UsageError, nearest
from sak.features import default_levels
from sak.student.router import GateNoise
from sak.student.sizes import AnyStemSize, StemSize, stem_size
from sak.variants.decoders import DECODERS
from sak.variants.swin import SwinSize

Fusion = Literal["mor", "sum", "none"]
Freeze = Literal["none", "stem", "all-but-routers"]
LoraTarget = Literal["qkv", "proj", "fc1", "fc2"]

STEM_EXPERT = "TAS"
"""The routers' name for the stem, their first expert; no teacher can have it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = frozenset(dir(nn.ModuleDict()))


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the stem's linear layers: W + alpha / rank * up @ down; the stem itself is frozen."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[LoraTarget, ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        """Refuse ranks and targets that mean nothing."""
        if self.rank < 1:
            raise UsageError(f"lora.rank must be at least 1, got {self.rank}")
        object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise UsageError("lora.targets is empty: name some of qkv, proj, fc1, fc2, or leave lora out")
        for target in self.targets:
            _check_choice("lora.targets", target, get_args(LoraTarget))


@dataclass(frozen=True)
class StudentConfig:
    """The student's parts and options; errors are `UsageError` and name the field, the value and the way out.

    Attributes:
        image_size: (height, width) in pixels, multiples of 16; the position embedding has one row per patch.
        stem: a timm ViT with patch 16 and class token, a timm Swin with patch 4, or a size of its own.
        weights: where the stem starts from: `pretrained` (timm), a file of a timm ViT, or `random:SEED`;
            `checkpoint` where a checkpoint alone says what the student holds.
        teachers: name -> channels of the teacher's maps (None: the student's own width), in the routers' order.
        tasks: name -> output channels.
        levels: tapped blocks counted from 1, the last one the stem's last; None: L/4, L/2, 3L/4, L. In a Swin, stages.
        adapters: one adapter path per teacher; False is the many-to-one student, which has linear aligners alone.
        down_ratio: the adapters' hidden width is the stem's width divided by this.
        aligners: one switch for all teachers and levels; None: on where any teacher's width differs, or no adapters.
        fusion: what a head reads: `mor` the routers' mixture, `sum` the teachers' paths added together (Table 3, row
            2; the stem is in every path and is not added again), `none` the stem alone.
        gate_noise: one draw per image and expert (the paper), or one per pixel too (published code).
        freeze: `stem`, or `all-but-routers`; frozen parts also stay in eval mode.
        decoder: what turns fused levels into predictions: `simple`, a head per task (the paper), `mlore`,
            `mlore-wide` or `invpt`, in which tasks share weights or see each other.
        lora: low-rank updates of the stem, which they freeze.
        gradient_checkpointing: recompute stem blocks and adapters in the backward pass instead of keeping them.
    """

    image_size: tuple[int, int]
    stem: str | AnyStemSize = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    weights: str = "pretrained"
    teachers: Mapping[str, int | None] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    levels: tuple[int, ...] | None = None
    adapters: bool = True
    down_ratio: int = 4
    aligners: bool | None = None
    fusion: Fusion = "mor"
    gate_noise: GateNoise = "image"
    freeze: Freeze = "none"
    decoder: str = "simple"
    lora: Lora | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check all of it; what follows from the rest (`tapped`, `teacher_widths`, `aligned`) is not filled in here."""
        object.__setattr__(self, "image_size", _whole_numbers("image_size", self.image_size))
        if self.levels is not None:
            object.__setattr__(self, "levels", _whole_numbers("levels", self.levels))
        size = self.size
        self._check_sizes(size)
        self._check_names()
        self._check_parts(size)

    def _check_sizes(self, size: AnyStemSize) -> None:
        step = size.multiple
        if len(self.image_size) != 2 or any(side < step or side % step for side in self.image_size):
            raise UsageError(f"image_size must be (height, width) in multiples of {step}, got {self.image_size}")
        if self.levels is None and size.depth % 4:
            raise UsageError(f"a stem of {size.depth} blocks has no quarters: name the levels")
        levels = self.tapped
        if list(levels) != sorted(set(levels)) or not levels or levels[0] < 1 or levels[-1] != size.depth:
            raise UsageError(
                f"levels must be increasing block numbers from 1 that end with the last block, {size.depth} "
                f"(deeper blocks would learn nothing), got {levels}"
            )
        if self.down_ratio < 1 or size.width_at(1) % self.down_ratio:
            raise UsageError(f"down_ratio must divide the stem's width {size.width_at(1)}, got {self.down_ratio}")

    def _check_names(self) -> None:
        for kind, table in (("teacher", self.teacher_widths), ("task", self.tasks)):
            for name, channels in table.items():
                if not _NAME.fullmatch(name) or name in _RESERVED or name == STEM_EXPERT:
                    raise UsageError(
                        f"{kind} name {name!r} cannot be used: letters, digits, - and _ make a name, and {STEM_EXPERT} "
                        "is the stem"
                    )
                if not isinstance(channels, int) or channels < 1:
                    raise UsageError(f"{kind} {name!r} needs a positive number of channels, got {channels!r}")
        words = {"fusion": get_args(Fusion), "gate_noise": get_args(GateNoise), "freeze": get_args(Freeze)}
        for option, known in (words | {"decoder": tuple(DECODERS)}).items():
            _check_choice(option, getattr(self, option), known)

    def _check_parts(self, size: AnyStemSize) -> None:
        widths = {size.width_at(level) for level in self.tapped}
        other = [
            f"{name} ({width})" for name, width in self.teachers.items() if width is not None and widths != {width}
        ]
        if other and not self.aligned:
            raise UsageError(
                f"teachers {', '.join(other)} differ from the student's width {size.width}: aligners: true"
            )
        if self.teachers and not self.adapters and not self.aligned:
            raise UsageError("a student without adapters has linear aligners alone: aligners: true")
        if self.tasks and self.fusion != "none" and not (self.teachers and self.adapters):
            raise UsageError(f"fusion {self.fusion!r} mixes adapter paths and this student has none: fusion: none")
        if self.lora is not None and self.freeze == "all-but-routers":
            raise UsageError("freeze all-but-routers would freeze LoRA too: leave lora out, or freeze the stem alone")

    @property
    def size(self) -> AnyStemSize:
        """Width, depth and heads of the stem."""
        return stem_size(self.stem)

    @property
    def tapped(self) -> tuple[int, ...]:
        """The levels, filled in."""
        return default_levels(self.size.depth) if self.levels is None else self.levels

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the last level's map, in patches; of every map but in a Swin."""
        return self.grid_at(self.tapped[-1])

    def grid_at(self, level: int) -> tuple[int, int]:
        """(H, W) of a level's map."""
        stride = self.size.stride_at(level)
        return self.image_size[0] // stride, self.image_size[1] // stride

    @property
    def level_widths(self) -> tuple[int, ...]:
        """The stem's channels by level; all the same but in a Swin."""
        return tuple(self.size.width_at(level) for level in self.tapped)

    @property
    def teacher_widths(self) -> dict[str, int]:
        """Teachers and their widths, filled in, in order."""
        return {name: self.size.width if width is None else width for name, width in self.teachers.items()}

    @property
    def aligned(self) -> bool:
        """Whether there are aligners, filled in."""
        if self.aligners is not None:
            return self.aligners
        widths = set(self.level_widths) | set(self.teacher_widths.values())
        return bool(self.teachers) and (not self.adapters or len(widths) > 1)

    @property
    def experts(self) -> tuple[str, ...]:
        """The routers' experts in the order of the gates: `TAS`, then the teachers."""
        return (STEM_EXPERT, *self.teachers)

    def resolved(self) -> "StudentConfig":
        """The same student with everything that follows from the rest spelled out, as checkpoints keep it."""
        one_width = len(set(self.level_widths)) == 1
        teachers = self.teacher_widths if self.aligned or one_width else dict(self.teachers)
        return replace(self, teachers=teachers, levels=self.tapped, aligners=self.aligned)

    def to_json(self) -> dict[str, Any]:
        """A JSON value; teachers and tasks are lists of pairs, because their order is meant."""
        pairs = {"teachers": list(self.teachers.items()), "tasks": list(self.tasks.items())}
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self) | pairs))
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StudentConfig":
        """The inverse of `to_json`; mappings are taken for teachers and tasks too. Unknown keys are errors."""
        plain = dict(value)
        for name in {"teachers", "tasks"} & plain.keys():
            plain[name] = _table(name, plain[name])
        if isinstance(plain.get("stem"), Mapping):
            plain["stem"] = size_from_json(plain["stem"])
        if isinstance(plain.get("lora"), Mapping):
            plain["lora"] = _construct(Lora, plain["lora"], "lora")
        return _construct(cls, plain, "student")


def size_from_json(value: Mapping[str, Any]) -> AnyStemSize:
    """A stem's size from JSON: a Swin where there are depths, else a ViT; unknown options are errors."""
    kind: type[AnyStemSize] = SwinSize if "depths" in value else StemSize
    return _construct(kind, value, "stem")


T = TypeVar("T")


def _construct(kind: type[T], value: Mapping[str, Any], where: str) -> T:
    """The dataclass from a mapping; `UsageError` names options that are unknown or missing."""
    known = signature(kind).parameters
    for name in value:
        if name not in known:
            raise UsageError(f"{where}: no option {name!r}{nearest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is Parameter.empty and name not in value:
            raise UsageError(f"{where}: {name} is missing")
    return kind(**value)


def _table(name: str, value: Any) -> dict[str, Any]:
    """A mapping, or pairs, as a dictionary in that order."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise UsageError(f"student: {name} must map names to channels, got {value!r}")
    return dict(pairs)


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or any(not isinstance(value, int) for value in values):
        raise UsageError(f"{name} must be a list of whole numbers, got {values!r}")
    return tuple(values)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")
