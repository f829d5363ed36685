"""A teacher before it is built: `TeacherRecipe` asks for one, `TeacherFacts` is what is known of one.

Imports neither torch nor a library.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from sak.errors import SakError, UsageError

Size = tuple[int, int]
"""(height, width)."""

FORMS = (
    "timm/<model>.<tag>, open_clip/<arch>/<tag>, segment_anything/<vit_b|vit_l|vit_h>, demo/<dino|clip|sam|stem>, "
    "custom:<module>:<builder>"
)
_WORDS = {
    "normalization": ("imagenet", "native"),
    "precision": ("fp32", "bf16", "fp16"),
    "sam_padding": ("keep", "crop"),
}
_SAM = re.compile(r"^segment_anything/|/samvit_|/(demo-)?sam\b")


class ModelName(NamedTuple):
    """A parsed model string; `tag` is empty where none was given, a builder's name for custom models."""

    library: str
    architecture: str
    tag: str = ""


def parse_model(text: str) -> ModelName:
    """Take a model string apart; UsageError where it has none of the known forms."""
    if text.startswith("custom:"):
        module, _, builder = text.removeprefix("custom:").partition(":")
        if module and builder:
            return ModelName("custom", module, builder)
    library, _, rest = text.partition("/")
    if library == "timm" and rest and "/" not in rest:
        architecture, _, tag = rest.partition(".")
        return ModelName(library, architecture, tag)
    if library == "open_clip" and rest:
        architecture, _, tag = rest.partition("/")
        return ModelName(library, architecture, tag)
    if library in ("segment_anything", "demo") and rest:
        return ModelName(library, rest)
    raise UsageError(f"{text!r} is no teacher model; write {FORMS}, or a name that `sak-cli teachers` lists")


def is_sam(model: str) -> bool:
    """Whether a model is SAM's image encoder, which pads its input to a square and has a grid of its own."""
    return _SAM.search(model) is not None


def as_size(value: int | Size, what: str) -> Size:
    """A size as (height, width); UsageError unless both are positive whole numbers."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise UsageError(f"{what} must be one positive number of pixels or (height, width), got {value!r}")
    return pair[0], pair[1]


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher without its weights.

    A row of the table of named teachers has all of it, for images of 384x384; `teacher_facts` works it out for any
    recipe and size. `grid` is (rows, columns) of the maps, `input_size` what the tower sees of an image (SAM's square),
    `parameters` are those of embeddings and all blocks: no head, final norm or neck. `levels` are the default ones,
    none where the depth has no quarters.
    """

    width: int
    depth: int
    grid: Size
    name: str = ""
    model: str = ""
    licence: str = "unknown"
    size: str = ""
    patch: int = 0
    parameters: int = 0
    layer_norm_eps: float = 0.0
    levels: tuple[int, ...] = ()
    input_size: Size = (384, 384)

    @property
    def library(self) -> str:
        """timm, open_clip, segment_anything, demo or custom."""
        return parse_model(self.model).library

    def as_dict(self) -> dict[str, object]:
        """The row for JSON; `input_size` is a square's side, as in the table."""
        lists = {"grid": list(self.grid), "levels": list(self.levels), "input_size": self.input_size[0]}
        return {"name": self.name, "library": self.library, **vars(self), **lists}


class OtherTeacherError(SakError):
    """The teacher that was built is not the one its recipe names: `what` of it is `found`, not `wanted`."""

    def __init__(self, recipe: "TeacherRecipe", what: str, wanted: str, found: str) -> None:
        super().__init__(
            f"teacher {recipe.name} ({recipe.model}, weights {recipe.weights}): its {what} is {found[:12]}, wanted "
            f"{wanted[:12]}; bring that one back, or name the file that has it in a spec (--spec)"
        )
        self.what, self.wanted, self.found = what, wanted, found


@dataclass(frozen=True)
class TeacherRecipe:
    """The one description of a teacher: all that `build_teacher` needs but the images' size and the device.

    Specs, manifests and runs are turned into it; a run's `run.json` and a probe's checkpoint keep it as JSON.

    Attributes:
        name: What the teacher is called.
        model: `timm/<model>.<tag>`, `open_clip/<arch>/<tag>`, `segment_anything/<vit_b|vit_l|vit_h>`, `demo/<name>`,
            `custom:<module>:<builder>`, or a name in the table.
        weights: `pretrained`, a file, or `random:SEED`; nothing else ever leads to random weights.
        input_size: (height, width) that the tower sees, where it is not the images' own; SAM's square, by default 1024.
        levels: Block numbers from 1, increasing; None: a quarter, a half, three quarters and all of the depth.
        normalization: `imagenet` for every teacher (published code), or the weights' own with `native`.
        precision: `fp32`, or `bf16` and `fp16` under autocast with a float32 residual stream.
        sam_padding: SAM's padding stays in the maps with `keep` (None, published code), `crop` leaves it out.
        overrides: `embed_dim`, `depth`, `num_heads`, `reg_tokens`, `window_size` of a small model, for tests.
        weights_sha256: Identity that the weights must have, see `sak.teachers.weights`; None: any.
        revision: What the code that computes the features must be called; None: any. See `code_revision`.
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

    def __post_init__(self) -> None:
        """Refuse words that mean nothing; sizes and levels are checked against the model, when it is built."""
        for option, words in _WORDS.items():
            word = getattr(self, option)
            if word not in words and not (option == "sam_padding" and word is None):
                raise UsageError(f"{self.name}: {option} must be one of {', '.join(words)}, got {word!r}")

    @classmethod
    def for_views(
        cls, name: str, view_size: Size, *, model: str, weights: str, input_size: Sequence[int] | None, **more: Any
    ) -> Self:
        """The recipe of a cache's teacher, fit for images of another size than the cache's views.

        An `input_size` that is merely that of the views is left out; a weights file is named by its whole path, so
        that it is found from any directory.
        """
        plain = input_size is None or (not is_sam(model) and tuple(input_size) == tuple(view_size))
        own = None if plain or input_size is None else (input_size[0], input_size[1])
        path = Path(weights).expanduser()
        return cls(name, model, str(path.resolve()) if path.is_file() else weights, own, **more)

    @property
    def library(self) -> str:
        """The library that has the model."""
        return parse_model(self.model).library

    @property
    def architecture(self) -> str:
        """The model's name in its library, without the weights tag; the module of a custom one."""
        return parse_model(self.model).architecture

    @property
    def tag(self) -> str:
        """The weights tag, empty where there is none; the builder of a custom model."""
        return parse_model(self.model).tag

    @property
    def is_random(self) -> bool:
        """Whether the weights are random numbers: every listing, plot and report must say so."""
        return self.weights.partition(":")[0] == "random"

    @property
    def code_revision(self) -> str | None:
        """The revision of our own teacher code, `TEACHER_REVISION` when it was built."""
        return None if self.revision is None else self.revision.partition("/")[0]

    @property
    def source_sha256(self) -> str | None:
        """The SHA-256 of a custom builder's source file; None for other teachers."""
        return (self.revision or "").partition("/")[2].removeprefix("custom-") or None

    def identified(self, built: "TeacherRecipe") -> Self:
        """The same with what a built teacher's own recipe tells: its levels, and the identity of weights and code."""
        return replace(self, levels=built.levels, weights_sha256=built.weights_sha256, revision=built.revision)

    def check(self, weights_sha256: str, built: "TeacherRecipe") -> None:
        """OtherTeacherError where a built teacher has other weights, or comes from other code, than this one names."""
        pairs = [("weights", self.weights_sha256, weights_sha256)]
        if self.revision is not None:
            pairs.append(("code revision", self.code_revision, str(built.code_revision)))
            pairs.append(("builder's source", str(self.source_sha256), str(built.source_sha256)))
        for what, wanted, found in pairs:
            if wanted is not None and wanted != found:
                raise OtherTeacherError(self, what, wanted, found)

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; SakError for anything else."""
        plain = dict(value)
        for name in ("input_size", "levels"):
            plain[name] = tuple(plain[name]) if plain.get(name) is not None else None
        unknown = sorted(set(plain) - {entry.name for entry in fields(cls)})
        if unknown or not {"name", "model"} <= set(plain):
            raise SakError(f"no record of a teacher: {', '.join(unknown) or 'its name or model is missing'}")
        return cls(**plain)
