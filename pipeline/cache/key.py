"""A column's key: the hash that names it, over everything that decides its bytes and nothing else.

An accidental change here orphans terabytes: golden keys are pinned in the tests.
"""

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.settings import flattened

SCHEMA = 1
KEY_DIGITS = 16
PIXELS = "PIL decode, RGB, crop, PIL bilinear, uint8"

Document = dict[str, Any]


def canonical_json(value: object) -> str:
    """One text for one value: keys sorted, no spaces, ASCII, floats by repr, tuples as lists.

    1 and 1.0 differ; -0.0 is 0.0. ValueError for NaN, infinities, keys that are not text, and any other type.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def column_document(
    teacher: TeacherSpec,
    spec: CacheSpec,
    *,
    weights_sha256: str,
    teacher_revision: str,
    custom_source_sha256: str | None = None,
) -> Document:
    """All that decides the bytes of one teacher's column, as plain JSON values; manifests keep it whole.

    `weights_sha256` is that of the sorted state dict before any resampling, `teacher_revision` that of our teacher
    code, `custom_source_sha256` that of a custom builder's source. The place of a weights file, the column's name,
    codec, block, format and the number of views are not in it; nor is the student's grid where the teacher's own is
    kept. The spec must come from `load_spec`, which writes every default out.
    """
    if teacher.levels is None or teacher.grid is None or teacher.input_size is None:
        raise ValueError("a key needs a spec with its defaults written out, as load_spec gives it")
    document = {
        "schema": SCHEMA,
        "views": spec.views.model_dump(mode="json"),
        "pixels": PIXELS,
        "teacher": {
            "model": teacher.model,
            "weights_sha256": weights_sha256,
            "revision": teacher_revision,
            "source_sha256": custom_source_sha256,
            "input_size": teacher.input_size,
            "normalization": teacher.normalization,
            "precision": teacher.precision,
            "sam_padding": teacher.sam_padding,
            "overrides": teacher.overrides,
        },
        "levels": teacher.levels,
        "grid": {"kind": teacher.grid, "student": None if teacher.grid == "native" else spec.grid},
        "encoding": teacher.encoding.model_dump(mode="json"),
        "calibration": spec.calibration.model_dump(mode="json"),
    }
    plain: Document = json.loads(canonical_json(document))
    return plain


def document_key(document: Mapping[str, Any]) -> str:
    """The key in the folder name `columns/<teacher>-<key>`: 16 hexadecimal digits of SHA-256 of the canonical JSON."""
    return sha256(canonical_json(document).encode("ascii")).hexdigest()[:KEY_DIGITS]


def explain_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, value in a, value in b) where two documents differ, by dotted name; None where one has no such field."""
    left, right = dict(flattened(a)), dict(flattened(b))
    names = sorted(left.keys() | right.keys())
    return [
        (name, left.get(name), right.get(name))
        for name in names
        if name not in left or name not in right or canonical_json(left[name]) != canonical_json(right[name])
    ]


def _plain(value: object, where: str) -> object:
    """`value` in JSON's own types; ValueError names the place of what has none."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value + 0.0
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{where}.{name}") for name, item in value.items()}
    raise ValueError(f"{where} is {value!r}: a key is made of text, finite numbers, booleans, lists and mappings")
