"""Sealed JSON: small documents of a cache that notice when a single byte of them has changed."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pipeline.cache.store import DamageError
from sak.errors import SakError

SCHEMA = 1

_SEAL = b',\n "seal": "%s"\n}\n'


class CacheError(SakError):
    """A cache, or a part of one, cannot be used as asked."""


class NewerSchemaError(CacheError):
    """A cache was written by a newer version of this project."""


def seal(document: Mapping[str, Any]) -> bytes:
    """`document` as JSON with the schema, and behind it the SHA-256 of all before; equal documents give equal bytes."""
    text = json.dumps({**document, "schema": SCHEMA}, sort_keys=True, indent=1, allow_nan=False).encode()
    body = text.removesuffix(b"\n}")
    return body + _SEAL % sha256(body).hexdigest().encode()


def unseal(data: bytes, place: str) -> dict[str, Any]:
    """The document in `data`, read from `place`.

    Raises DamageError where any byte differs from what `seal` wrote, NewerSchemaError where it is from a later schema.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{place}: damaged, not JSON ({error}); see `sak-cli cache verify`") from error
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int) or "seal" not in document:
        raise DamageError(f"{place}: damaged, or not a file of a feature cache; see `sak-cli cache verify`")
    if document["schema"] > SCHEMA:
        raise NewerSchemaError(
            f"{place}: written in cache schema {document['schema']}, this version reads up to {SCHEMA}; upgrade sak"
        )
    body = data[: -len(_SEAL % bytes(64))]
    if data != body + _SEAL % sha256(body).hexdigest().encode():
        raise DamageError(f"{place}: damaged, its content is not what was sealed; see `sak-cli cache verify`")
    return {name: value for name, value in document.items() if name not in ("schema", "seal")}


def field(document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """`document[name]`, which must be a `kind`; DamageError names `place` otherwise."""
    if not isinstance(document.get(name), kind):
        raise DamageError(f"{place}: field {name!r} is missing or wrong; see `sak-cli cache verify`")
    return document[name]
