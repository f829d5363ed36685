"""Whether a block's files are what its records say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.memory import address
from pipeline.cache.native_crc import crc32c
from pipeline.cache.native_read import TRAILER, read_ranges, reason
from pipeline.cache.open_files import FileKey, OpenFile
from pipeline.cache.store import Damage, DamageError, FileRecord
from pipeline.storage import MissingFileError

if TYPE_CHECKING:
    from pipeline.cache.indexed_store import IndexedStore

_PIECE = 4 << 20


def check_block(
    store: "IndexedStore", view: int, block: int, records: Sequence[FileRecord], *, deep: bool
) -> tuple[Damage, ...]:
    """See `ColumnStore.check`."""
    paths = store.files(view, block)
    recorded = {record.path: record for record in records}
    found = [Damage(path, "recorded, but this block has no such file") for path in sorted({*recorded} - {*paths})]
    for path in paths:
        found += _file_damage(store, path, recorded.get(path), deep=deep)
    damaged = {damage.path for damage in found}
    for name in dict.fromkeys(store.data_file(array)[0] for array in store.layout.arrays):
        path = store.data_path(name, view, block)
        if path not in damaged or (deep and store.location.exists(path)):
            found += _sample_damage(store, (store.location.url, name, view, block), deep=path in damaged)
    return tuple(found) or tuple(_disagreement(store, view, block))


def _file_damage(store: "IndexedStore", path: str, record: FileRecord | None, *, deep: bool) -> Iterator[Damage]:
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
    elif deep and file_digest(Path(store.opener.local([path])[0])) != record.digest:
        yield Damage(path, "its bytes are not those that were written")


def _sample_damage(store: "IndexedStore", key: FileKey, *, deep: bool) -> Iterator[Damage]:
    """A damaged index, and with `deep` every damaged sample."""
    path = store.data_path(*key[1:])
    try:
        with _loaded(store, key) as file:
            for array in store.layout.arrays if deep else ():
                name, row = store.data_file(array)
                for position, status in _bad_chunks(file, row) if name == key[1] else ():
                    sample = key[3] * store.layout.block + position
                    yield Damage(path, f"{array.name}: {reason(status)}", sample)
    except DamageError as error:
        yield Damage(path, str(error))


@contextmanager
def _loaded(store: "IndexedStore", key: FileKey) -> Iterator[OpenFile]:
    (file,) = store.load([key])
    try:
        yield file
    finally:
        file.close()


def _bad_chunks(file: OpenFile, row: int) -> Iterator[tuple[int, int]]:
    places = file.places[row]
    memory = np.empty(int(places[:, 1].max(initial=0)), np.uint8)
    for position in np.flatnonzero(places[:, 0] >= 0).tolist():
        place = places[position].tolist()
        expected = place[2] if len(place) > 2 else TRAILER
        status = read_ranges(np.array([[file.descriptor, address(memory), *place[:2], expected]]))
        if status[0]:
            yield position, int(status[0])


def _disagreement(store: "IndexedStore", view: int, block: int) -> Iterator[Damage]:
    """Arrays that hold different samples, each sound by itself."""
    try:
        store.present(view, block)
    except DamageError as error:
        yield Damage(store.files(view, block)[0], str(error))


def file_digest(path: Path) -> str:
    """`crc32c:` and the checksum of a whole file."""
    memory = memoryview(bytearray(_PIECE))
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory):
            checksum = crc32c(memory[:count], checksum)
    return f"crc32c:{checksum:08x}"
