"""A column's manifest: what the column is and how it lies on disk; and the sealed JSON of all a cache's documents.

The first manifest written is the one that holds. A seal makes small documents notice when one byte has changed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as default
from hashlib import sha256
from typing import Any

from pipeline.cache.stores.base import ArrayLayout, ColumnLayout, DamageError
from sak.errors import SakError
from sak.teachers.recipe import TeacherRecipe

SCHEMA = 1
MANIFEST = "manifest.json"

_SEAL = b',\n "seal": "%s"\n}\n'
_SHORT = 16  # hexadecimal digits of a data key that name a folder
_KINDS = {
    **dict.fromkeys(("teacher", "spec_key", "data_key", "weights", "format"), str),
    **dict.fromkeys(("document", "facts"), dict),
    "width": int,
}

Grid = tuple[int, int]


class CacheError(SakError):
    """A cache, or a part of one, cannot be used as asked."""


class NewerSchemaError(CacheError):
    """A cache was written by a newer version of this project."""


def seal(document: Mapping[str, Any]) -> bytes:
    """`document` as JSON with the schema, and behind it the SHA-256 of all before; equal documents give equal bytes."""
    text = json.dumps({**document, "schema": SCHEMA}, sort_keys=True, indent=1, allow_nan=False).encode()
    body = text.removesuffix(b"\n}")
    return body + _SEAL % sha256(body).hexdigest().encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The document in `data`, read from `where`.

    Raises DamageError where any byte differs from what `seal` wrote, NewerSchemaError where it is from a later schema.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{where}: damaged, not JSON ({error}); see `sak-cli cache verify`") from error
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int) or "seal" not in document:
        raise DamageError(f"{where}: damaged, or not a file of a feature cache; see `sak-cli cache verify`")
    if document["schema"] > SCHEMA:
        raise NewerSchemaError(
            f"{where}: written in cache schema {document['schema']}, this version reads up to {SCHEMA}; upgrade sak"
        )
    body = data[: -len(_SEAL % bytes(64))]
    if data != body + _SEAL % sha256(body).hexdigest().encode():
        raise DamageError(f"{where}: damaged, its content is not what was sealed; see `sak-cli cache verify`")
    return {name: value for name, value in document.items() if name not in ("schema", "seal")}


def field(document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`document[name]`, which must be a `kind`; DamageError names `where` otherwise."""
    if not isinstance(document.get(name), kind):
        raise DamageError(f"{where}: field {name!r} is missing or wrong; see `sak-cli cache verify`")
    return document[name]


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
        return f"{self.teacher}-{self.spec_key}"

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
        arrays = [
            {**asdict(array), "fill": "NaN" if math.isnan(array.fill) else array.fill} for array in self.layout.arrays
        ]
        return seal({**asdict(self), "layout": {**asdict(self.layout), "arrays": arrays}})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """The manifest in `data`, read from `where`; DamageError where a byte of it changed."""
        read = unseal(data, where)
        try:
            return cls(
                **{name: field(read, name, kind, where) for name, kind in _KINDS.items()},
                grid=(int(read["grid"][0]), int(read["grid"][1])),
                layout=_layout(read["layout"]),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise DamageError(f"{where}: not a manifest ({error!r}); see `sak-cli cache verify`") from error


def data_name(data_key: str) -> str:
    """What a data key is called in a cache's folders: its first 16 digits."""
    return data_key[:_SHORT]


def _layout(read: Mapping[str, Any]) -> ColumnLayout:
    arrays = []
    for array in read["arrays"]:
        fill = math.nan if array["fill"] == "NaN" else array["fill"]
        arrays.append(ArrayLayout(array["name"], array["dtype"], tuple(array["shape"]), fill))
    return ColumnLayout(tuple(arrays), read["samples"], read["block"], read["codec"])
