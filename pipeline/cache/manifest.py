"""A column's manifest: what the column is, and how it lies on disk; the first one written is the one that holds."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as default
from typing import Any

from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.sealed import field, seal, unseal
from pipeline.cache.store import DamageError
from sak.teachers.recipe import TeacherRecipe

MANIFEST = "manifest.json"
_SHORT = 16  # hexadecimal digits of a data key that name a folder
Grid = tuple[int, int]


@dataclass(frozen=True)
class Manifest:
    """One teacher's features of one data set.

    `document` is what was hashed into `spec_key`, whole; `data_key` names the samples. `width` and `grid` (height,
    width) are those of the teacher's own maps. `weights` is as the spec had it: `pretrained`, a file, or `random:SEED`.
    `layout` and `format` (zarr or webdataset) fix how the arrays lie. `facts` say how the column came about.
    """

    teacher: str
    spec_key: str
    data_key: str
    document: Mapping[str, Any]
    width: int
    grid: Grid
    weights: str
    layout: ColumnLayout
    format: str
    facts: Mapping[str, Any] = default(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether the weights know nothing; every listing, plot and report says so."""
        return self.weights.startswith("random")

    @property
    def name(self) -> str:
        """The folder of the teacher's columns: `<teacher>-<spec key>`."""
        return column_name(self.teacher, self.spec_key)

    @property
    def view_size(self) -> Grid:
        """(height, width) of the views that the teacher saw."""
        height, width = self.document["views"]["size"]
        return height, width

    @property
    def recipe(self) -> TeacherRecipe:
        """The teacher that made the column, with the identity of its weights and code."""
        made = dict(self.document["teacher"])
        source = made.pop("source_sha256")
        made["revision"] += f"/custom-{source}" if source else ""
        return TeacherRecipe.for_views(
            self.teacher, self.view_size, weights=self.weights, levels=tuple(self.document["levels"]), **made
        )

    def to_bytes(self) -> bytes:
        """The manifest as it lies on disk."""
        arrays = [{**asdict(array), "fill": _fill_text(array.fill)} for array in self.layout.arrays]
        return seal({**asdict(self), "layout": {**asdict(self.layout), "arrays": arrays}})

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> "Manifest":
        """The manifest in `data`, read from `place`; DamageError where a byte of it changed."""
        read = unseal(data, place)
        try:
            return cls(
                teacher=field(read, "teacher", str, place),
                spec_key=field(read, "spec_key", str, place),
                data_key=field(read, "data_key", str, place),
                document=field(read, "document", dict, place),
                width=field(read, "width", int, place),
                grid=(int(read["grid"][0]), int(read["grid"][1])),
                weights=field(read, "weights", str, place),
                layout=_layout(read["layout"]),
                format=field(read, "format", str, place),
                facts=field(read, "facts", dict, place),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise DamageError(f"{place}: not a manifest ({error!r}); see `sak-cli cache verify`") from error


def column_name(teacher: str, spec_key: str) -> str:
    """`<teacher>-<spec key>`."""
    return f"{teacher}-{spec_key}"


def data_name(data_key: str) -> str:
    """What a data key is called in a cache's folders: its first 16 digits."""
    return data_key[:_SHORT]


def _fill_text(fill: float) -> float | str:
    return "NaN" if math.isnan(fill) else fill


def _layout(read: Mapping[str, Any]) -> ColumnLayout:
    arrays = tuple(
        ArrayLayout(
            each["name"], each["dtype"], tuple(each["shape"]), math.nan if each["fill"] == "NaN" else each["fill"]
        )
        for each in read["arrays"]
    )
    return ColumnLayout(arrays, read["samples"], read["block"], read["codec"])
