"""What a cache contains: views, teachers, levels, grids, encodings; read from `cache_specs/*.yaml`.

All that decides the bytes of a column is here and in its key; `codec`, `block` and `format` say only how they lie.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.images.views import ViewPolicy
from pipeline.settings import Frozen, Overrides, overridden, parse_settings, read_yaml
from sak.errors import UsageError, nearest
from sak.features import default_levels
from sak.teachers.recipe import TeacherFacts, TeacherRecipe, is_sam

LIBRARIES = ("timm", "open_clip", "segment_anything", "custom", "demo")
Size = tuple[Annotated[int, Field(ge=1, le=8192, strict=True)], Annotated[int, Field(ge=1, le=8192, strict=True)]]

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(-[a-z0-9_]+)*")
_STUDENT_PATCH = 16
_BLOCKS = {"float16": 512, "bfloat16": 512}


class EncodingSpec(Frozen):
    """How tokens become bytes: `kind`, after a projection onto the first `pca` principal components where given."""

    kind: Literal["float16", "bfloat16", "int8", "int4"] = "int8"
    pca: Annotated[int, Field(ge=1, strict=True)] | None = None


class CalibrationSpec(Frozen):
    """Where channel statistics and principal components come from: how many samples, and the seed that picks them."""

    samples: Annotated[int, Field(ge=2, strict=True)] = 2048
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0


class TeacherSpec(Frozen):
    """One teacher and how its features are kept.

    `model` is a library and its name with the full weights tag (`timm/vit_base_patch14_dinov2.lvd142m`,
    `open_clip/<arch>/<tag>`, `segment_anything/vit_b`, `custom:module:builder`). `weights` is `pretrained`, a file or
    `random:SEED`. `input_size` is (height, width) in pixels, by default the view's; for SAM the square its input is
    padded to, by default 1024. `levels` are block numbers from 1, by default L/4, L/2, 3L/4 and L. `grid` is by default
    `projection` for SAM and `native` for all others. `overrides` go to the model's builder.
    """

    model: str
    weights: str = "pretrained"
    input_size: Size | None = None
    normalization: Literal["imagenet", "native"] = "imagenet"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    levels: tuple[Annotated[int, Field(strict=True)], ...] | None = None
    sam_padding: Literal["keep", "crop"] | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    grid: Literal["native", "projection", "area"] | None = None
    encoding: EncodingSpec = EncodingSpec()

    @field_validator("model")
    @classmethod
    def _known_library(cls, model: str) -> str:
        library, _, name = model.partition(":" if model.startswith("custom:") else "/")
        if library not in LIBRARIES or not name:
            raise ValueError(f"must be <library>/<model> or custom:<module>:<builder>, got {model!r}"
                             f"{nearest(library, LIBRARIES)}")  # fmt: skip
        return model

    @field_validator("weights")
    @classmethod
    def _weights_place(cls, weights: str) -> str:
        if not weights or (weights.startswith("random") and not re.fullmatch(r"random:\d{1,18}", weights)):
            raise ValueError(f"must be pretrained, a file or random:SEED, got {weights!r}")
        return weights

    @field_validator("input_size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) else size

    @field_validator("encoding", mode="before")
    @classmethod
    def _short_form(cls, encoding: Any) -> Any:
        return {"kind": encoding} if isinstance(encoding, str) else encoding

    @model_validator(mode="after")
    def _consistent(self) -> "TeacherSpec":
        library, _, name = self.model.partition("/")
        if library == "timm" and self.weights == "pretrained" and "." not in name:
            raise ValueError(f"model {self.model!r} names no weights tag; spell it out, as in timm/{name}.<tag>")
        if self.sam_padding is not None and not is_sam(self.model):
            raise ValueError(f"sam_padding belongs to SAM, {self.model!r} pads nothing; leave it out")
        return self


class CacheSpec(Frozen):
    """A cache's contents. How many views there are is not part of it: more append to those there are.

    `student_grid` is (height, width) of the student's patches, by default the view's size over 16. `block` is the
    samples one job writes, by default 512 where a teacher is kept in 16 bits and 1,024 otherwise.
    """

    views: ViewPolicy
    teachers: dict[str, TeacherSpec] = Field(min_length=1)
    student_grid: Size | None = None
    calibration: CalibrationSpec = CalibrationSpec()
    codec: Literal["none", "zstd", "blosc", "pcodec"] = "none"
    block: Annotated[int, Field(ge=1, le=1 << 20, strict=True)] | None = None
    format: Literal["zarr", "webdataset"] = "zarr"

    @field_validator("teachers")
    @classmethod
    def _names(cls, teachers: dict[str, TeacherSpec]) -> dict[str, TeacherSpec]:
        for name in teachers:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a teacher's name is a folder's: a-z, 0-9, _ and single -, got {name!r}")
        return teachers

    @model_validator(mode="after")
    def _codec_fits(self) -> "CacheSpec":
        if self.format == "webdataset" and self.codec != "none":
            raise ValueError(f"codec {self.codec} goes with format zarr; webdataset holds plain values, codec none")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the student's patches."""
        height, width = self.views.size
        return self.student_grid or (max(1, height // _STUDENT_PATCH), max(1, width // _STUDENT_PATCH))

    @property
    def samples_per_block(self) -> int:
        """The samples one job writes."""
        return self.block or min(_BLOCKS.get(teacher.encoding.kind, 1024) for teacher in self.teachers.values())

    def recipe(self, name: str) -> TeacherRecipe:
        """The recipe of the teacher called `name`."""
        fields = self.teachers[name].model_dump(exclude={"grid", "encoding"})
        return TeacherRecipe.for_views(name, self.views.size, **fields)

    def facts(self, name: str, where: str) -> TeacherFacts:
        """Width, depth and grid of the teacher called `name` for the spec's views, from its shapes alone.

        UsageError, which begins with `where`, for a model that its library lacks or a size that it cannot take.
        """
        from sak.teachers import teacher_facts

        try:
            return teacher_facts(replace(self.recipe(name), name=where), image_size=self.views.size)
        except UsageError as error:
            text = str(error)
            raise UsageError(text if text.startswith(where) else f"{where}: {text}") from error


def load_spec(
    path: str | Path,
    overrides: Overrides | None = None,
    *,
    facts: Mapping[str, TeacherFacts] | None = None,
) -> CacheSpec:
    """Read and check a spec; all defaults that depend on the teacher are filled in, so equal specs compare equal.

    `overrides` are dotted names with values, or `a.b=value` lines as `--set` takes them. `facts` replaces what the
    teacher registry says of width, depth and grid, by teacher name. Raises UsageError, one line, for unreadable YAML,
    unknown or wrong keys, levels beyond the depth and PCA wider than the teacher.
    """
    document = overridden(read_yaml(Path(path), "a cache spec"), overrides or {})
    return parse_spec(document, source=str(path), facts=facts)


def parse_spec(
    document: Mapping[str, object], *, source: str = "spec", facts: Mapping[str, TeacherFacts] | None = None
) -> CacheSpec:
    """A checked spec from a document already read; see `load_spec`. `source` begins every error."""
    spec = parse_settings(CacheSpec, document, source)
    filled = {name: _filled(teacher, spec) for name, teacher in spec.teachers.items()}
    spec = spec.model_copy(update={"teachers": filled, "student_grid": spec.grid, "block": spec.samples_per_block})
    checked = {}
    for name, teacher in filled.items():
        where = f"{source}: teachers.{name}"
        checked[name] = _checked(teacher, (facts or {}).get(name) or spec.facts(name, where), where)
    return spec.model_copy(update={"teachers": checked})


def _filled(teacher: TeacherSpec, spec: CacheSpec) -> TeacherSpec:
    """The teacher with every default written out that needs no knowledge of its depth."""
    sam = is_sam(teacher.model)
    return teacher.model_copy(
        update={
            "input_size": teacher.input_size or ((1024, 1024) if sam else spec.views.size),
            "grid": teacher.grid or ("projection" if sam else "native"),
            "sam_padding": teacher.sam_padding or ("keep" if sam else None),
        }
    )


def _checked(teacher: TeacherSpec, facts: TeacherFacts, where: str) -> TeacherSpec:
    """The teacher with its levels, after comparing levels and PCA with its depth and width."""
    levels = teacher.levels if teacher.levels is not None else default_levels(facts.depth)
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 1 or levels[-1] > facts.depth:
        raise UsageError(
            f"{where}: levels must be increasing block numbers between 1 and {facts.depth}, got {tuple(levels)}"
        )
    if teacher.encoding.pca is not None and teacher.encoding.pca > facts.width:
        raise UsageError(
            f"{where}: encoding.pca must be at most the teacher's width {facts.width}, got {teacher.encoding.pca}"
        )
    return teacher.model_copy(update={"levels": tuple(levels)})
