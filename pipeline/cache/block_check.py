"""Whether a block's files are what its records say."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.memory import address
from pipeline.cache.native_read import TRAILER, read_ranges, reason
from pipeline.cache.open_files import OpenFile
from pipeline.cache.store import FRAME, Damage, DamageError, FileRecord
from pipeline.storage import MissingFileError

if TYPE_CHECKING:
    from pipeline.cache.indexed_store import IndexedStore

_PIECE = 1 << 20


def check_block(
    store: "IndexedStore", view: int, block: int, records: Sequence[FileRecord], *, deep: bool
) -> tuple[Damage, ...]:
    """See `ColumnStore.check`."""
    paths = store.files(view, block)
    recorded = {record.path: record for record in records}
    found = [Damage(path, "recorded, but this block has no such file") for path in sorted({*recorded} - {*paths})]
    for path in paths:
        found += _size_damage(store, path, recorded.get(path))
    unsized = {damage.path for damage in found}
    values: dict[str, NDArray[np.int64] | None] = dict.fromkeys(paths, np.empty((0, 2), np.int64))
    for name in dict.fromkeys(store.data_file(array)[0] for array in store.layout.arrays):
        path = store.data_path(name, view, block)
        try:
            (file,) = store.load([(store.location.url, name, view, block)])
        except DamageError as error:
            values[path] = None
            # Where a file of this block is lost or cut, that is what is wrong, and it is named already.
            found += [] if unsized else [Damage(_named_in(error, store, paths), str(error))]
            continue
        try:
            found += _value_damage(store, name, path, file) if deep else ()
            values[path] = file.places[..., :2].reshape(-1, 2)
        finally:
            file.close()
    for path in paths if deep else ():
        if path not in unsized and (where := values[path]) is not None:
            found += _frame_damage(store, recorded[path], where)
    return tuple(found) or tuple(_disagreement(store, view, block))


def _size_damage(store: "IndexedStore", path: str, record: FileRecord | None) -> Iterator[Damage]:
    if record is None:
        yield Damage(path, "not in the block's record")
        return
    try:
        size = store.location.size(path)
    except MissingFileError:
        yield Damage(path, "missing")
        return
    if size != record.bytes:
        yield Damage(path, f"{size} bytes, {record.bytes} were written")


def _named_in(error: DamageError, store: "IndexedStore", paths: Sequence[str]) -> str:
    """The file that an error's line begins with."""
    return next((path for path in paths if str(error).startswith(f"{store.location.at(path)}: ")), paths[0])


def _value_damage(store: "IndexedStore", name: str, path: str, file: OpenFile) -> Iterator[Damage]:
    """Every sample whose values are not those of its checksum."""
    for array in store.layout.arrays:
        of_file, row = store.data_file(array)
        if of_file != name:
            continue
        places = file.places[row]
        memory = np.empty(int(places[:, 1].max(initial=0)), np.uint8)
        for position in np.flatnonzero(places[:, 0] >= 0).tolist():
            offset, length, *known = places[position].tolist()
            expected = known[0] if known else TRAILER
            (status,) = read_ranges(np.array([[file.descriptor, address(memory), offset, length, expected]]))
            if status:
                sample = file.key[3] * store.layout.block + position
                yield Damage(path, f"{array.name}: {reason(status)}", sample)


def _frame_damage(store: "IndexedStore", record: FileRecord, values: NDArray[np.int64]) -> Iterator[Damage]:
    if frame_digest(Path(store.opener.local([record.path])[0]), values) != record.digest:
        yield Damage(record.path, "its headers, checksums or index are not those that were written")


def _disagreement(store: "IndexedStore", view: int, block: int) -> Iterator[Damage]:
    """Arrays that hold different samples, each sound by itself."""
    try:
        store.present(view, block)
    except DamageError as error:
        yield Damage(store.files(view, block)[0], str(error))


def frame_digest(path: Path, values: NDArray[Any]) -> str:
    """`FileRecord.digest` of a file, of which `values`, rows of (offset, bytes), are left out; -1 is nowhere."""
    digest = sha256()
    present = values[values[:, 0] >= 0]
    present = present[np.argsort(present[:, 0])]
    with path.open("rb", buffering=0) as file:
        start = 0
        for offset, length in [*present.tolist(), (os.fstat(file.fileno()).st_size, 0)]:
            while start < offset and (data := os.pread(file.fileno(), min(_PIECE, offset - start), start)):
                digest.update(data)
                start += len(data)
            start = offset + length
    return f"{FRAME}{digest.hexdigest()}"
