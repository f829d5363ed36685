"""The `zarr.json` files of a column: a group per level, an array for each of its parts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import google_crc32c
import numpy as np

from pipeline.cache.chunk_codecs import bytes_codec, chunk_codec
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.store import REMEDY, Damage, DamageError
from pipeline.storage import Location, MissingFileError

FILE = "zarr.json"
_CHECKSUM = {"name": "crc32c"}


def shard_path(array: ArrayLayout, view: int, block: int) -> str:
    """The file of a block's shard: one folder an array, not one a block."""
    return f"{array.name}/c.{view}.{block}" + ".0" * len(array.shape)


def metadata_files(layout: ColumnLayout, views: int) -> Iterator[tuple[str, bytes]]:
    """Path and content of every metadata file of a column with so many views."""
    groups = {parent.as_posix() for array in layout.arrays for parent in PurePosixPath(array.name).parents}
    for group in sorted(groups):
        path = FILE if group == "." else f"{group}/{FILE}"
        yield path, _sealed({"zarr_format": 3, "node_type": "group"})
    for array in layout.arrays:
        yield f"{array.name}/{FILE}", _sealed(_array_document(layout, array, views))


def _sealed(document: dict[str, Any]) -> bytes:
    """The document with a checksum of itself among its attributes, so that no changed byte of it passes."""
    plain = json.dumps(document, sort_keys=True).encode()
    sealed = {**document, "attributes": {"crc32c": f"{google_crc32c.value(plain):08x}"}}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()


def _array_document(layout: ColumnLayout, array: ArrayLayout, views: int) -> dict[str, Any]:
    codec = chunk_codec(layout.codec, array)
    inner = [*(codec.metadata if codec else [bytes_codec(array)]), _CHECKSUM]
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, _CHECKSUM]
    sharding: Mapping[str, Any] = {
        "chunk_shape": [1, 1, *array.shape],
        "codecs": inner,
        "index_codecs": index,
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [views, layout.samples, *array.shape],
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, layout.block, *array.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": _fill(array),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "storage_transformers": [],
    }


def _fill(array: ArrayLayout) -> int | float | str:
    if np.dtype(array.dtype).kind != "f":
        return int(array.fill)
    return "NaN" if np.isnan(array.fill) else float(array.fill)


def stored_views(location: Location, layout: ColumnLayout) -> int:
    """How many views the metadata holds; 0 where there is none. DamageError where it is not what was written."""
    counts = {_views_of(location, array) for array in layout.arrays}
    return min(counts)


def _views_of(location: Location, array: ArrayLayout) -> int:
    path = f"{array.name}/{FILE}"
    try:
        data = location.read_bytes(path)
    except MissingFileError:
        return 0
    try:
        document = json.loads(data)
        plain = {name: value for name, value in document.items() if name != "attributes"}
        views = document["shape"][0]
        whole = _sealed(plain) == data and isinstance(views, int)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DamageError(f"{location.at(path)}: changed since it was written; {REMEDY}")
    return int(views)


def write_metadata(location: Location, layout: ColumnLayout, views: int) -> None:
    """Write what is not there yet; DamageError where the column there has other arrays."""
    there = stored_views(location, layout)
    if there > 0 and (differing := check_metadata(location, layout, there)):
        raise DamageError(f"{location.at(differing[0].path)}: {differing[0].problem}; {REMEDY}")
    if there < views:
        for path, content in metadata_files(layout, views):
            # Another writer may have been first, and for more views.
            if not location.create_exclusive(path, content) and there:
                location.write_bytes(path, content)


def check_metadata(location: Location, layout: ColumnLayout, views: int) -> tuple[Damage, ...]:
    """What is wrong with the metadata, which must hold at least `views` views."""
    found = []
    for path, _ in metadata_files(layout, views):
        try:
            data = location.read_bytes(path)
        except MissingFileError:
            found.append(Damage(path, "missing"))
            continue
        if not _is_for_some_views(layout, path, data, views):
            found.append(Damage(path, "not what was written for this column"))
    return tuple(found)


def _is_for_some_views(layout: ColumnLayout, path: str, data: bytes, least: int) -> bool:
    try:
        shape = json.loads(data).get("shape", [least])
        views = int(shape[0])
    except (ValueError, AttributeError, TypeError, IndexError):
        return False
    return views >= least and dict(metadata_files(layout, views))[path] == data
