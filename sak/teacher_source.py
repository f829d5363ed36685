"""How a teacher is built again: what a run keeps of the teachers it met, so that the same ones come back.

Imports no teacher until one is built.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sak.errors import SakError
from sak.features import FeatureMaps

if TYPE_CHECKING:
    from sak.teachers import Teacher

Size = tuple[int, int]


@dataclass(frozen=True)
class TeacherSource:
    """The arguments of `build_teacher`, and what must come out of it.

    Attributes:
        name: what the teacher is called.
        model: its full model string.
        weights: `pretrained`, a file, or `random:SEED`.
        input_size: (height, width) that the tower sees, where it is not the images' own; SAM's square.
        levels: tapped blocks from 1; None: the quarters.
        normalization: `imagenet` or `native`.
        precision: `fp32`, `bf16` or `fp16`.
        sam_padding: `keep` or `crop`, of SAM alone.
        overrides: sizes of a small model.
        weights_sha256: identity of the weights; None: whatever is there.
        revision: of the code that computes the features; None: whatever is there.
    """

    name: str
    model: str
    weights: str = "pretrained"
    input_size: Size | None = None
    levels: tuple[int, ...] | None = None
    normalization: str = "imagenet"
    precision: str = "fp32"
    sam_padding: str | None = None
    overrides: Mapping[str, int] = field(default_factory=dict)
    weights_sha256: str | None = None
    revision: str | None = None

    @property
    def is_random(self) -> bool:
        """Whether the weights know nothing; every listing and report says so."""
        return self.weights.startswith("random")

    def build(self, image_size: Size, *, device: torch.device | None = None, **changes: Any) -> "Teacher":
        """The teacher for images of `image_size` (height, width), with some of its options changed.

        SakError where the weights are not to be had, or are others than those known.
        """
        from sak.teachers import build_teacher

        source = replace(self, **changes)
        teacher = build_teacher(
            source.model,
            weights=source.weights,
            image_size=image_size,
            input_size=source.input_size,
            levels=source.levels,
            normalization=source.normalization,
            precision=source.precision,
            sam_padding=source.sam_padding or "keep",
            overrides=source.overrides,
            name=source.name,
            device=device,
        )
        self._check("weights", self.weights_sha256, teacher.weights_sha256)
        self._check("code revision", self.revision, teacher.facts.revision)
        return teacher

    def identified(self, teacher: "Teacher") -> "TeacherSource":
        """The same source with everything written out that the built teacher tells."""
        return replace(
            self, levels=teacher.levels, weights_sha256=teacher.weights_sha256, revision=teacher.facts.revision
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TeacherSource":
        """The inverse of `to_json`; SakError for anything else."""
        plain = dict(value)
        for name in ("input_size", "levels"):
            plain[name] = tuple(plain[name]) if plain.get(name) is not None else None
        unknown = sorted(set(plain) - {entry.name for entry in fields(cls)})
        if unknown or not {"name", "model"} <= set(plain):
            raise SakError(f"no record of a teacher: {', '.join(unknown) or 'its name or model is missing'}")
        return cls(**plain)

    def _check(self, what: str, wanted: str | None, found: str) -> None:
        if wanted is not None and wanted != found:
            raise SakError(
                f"teacher {self.name} ({self.model}, weights {self.weights}): its {what} is {found[:12]}, wanted "
                f"{wanted[:12]}; bring that one back, or name the file that has it in a spec (--spec)"
            )


def see(teacher: "Teacher", images: Tensor) -> FeatureMaps:
    """The teacher's levels for images that have ImageNet's normalisation, (B, 3, H, W).

    A teacher of that normalisation takes them as they are (published code); another one has it exchanged for its own.
    """
    from sak.teachers.preprocess import IMAGENET

    if teacher.normalization == IMAGENET:
        return teacher.features(images)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return teacher.features(((images * std + mean) - teacher.mean) / teacher.std)
