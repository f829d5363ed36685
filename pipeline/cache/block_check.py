"""Whether a block's files are what its records say."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.file_opener import FileOpener
from pipeline.cache.layout import ArrayLayout, ColumnLayout
from pipeline.cache.open_files import FileKey, OpenFile
from pipeline.cache.ranges import RangeError, Ranges, read_ranges
from pipeline.cache.store import FRAME, Damage, DamageError, FileRecord
from pipeline.storage import Location, MissingFileError

_PIECE = 1 << 20


class CheckedStore(ABC):
    """What a store must tell of a block's files so that they can be checked, and the check."""

    location: Location
    layout: ColumnLayout
    opener: FileOpener

    @abstractmethod
    def data_file(self, array: ArrayLayout) -> tuple[str, int]:
        """What names the file with an array, among those of a block, and which of the arrays in it it is."""

    @abstractmethod
    def data_path(self, file: str, view: int, block: int) -> str:
        """The path of the file that `data_file` names."""

    @abstractmethod
    def files(self, view: int, block: int) -> tuple[str, ...]:
        """See `ColumnStore`."""

    @abstractmethod
    def load(self, keys: Sequence[FileKey]) -> list[OpenFile]:
        """Open data files, with their indices read and checked. DamageError names a file that is not right."""

    @abstractmethod
    def present(self, view: int, block: int) -> NDArray[np.bool_]:
        """See `ColumnStore`."""

    def check(self, view: int, block: int, records: Sequence[FileRecord], *, deep: bool = False) -> tuple[Damage, ...]:
        """See `ColumnStore`."""
        return _check_block(self, view, block, records, deep=deep)


def _check_block(
    store: CheckedStore, view: int, block: int, records: Sequence[FileRecord], *, deep: bool
) -> tuple[Damage, ...]:
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


def _size_damage(store: CheckedStore, path: str, record: FileRecord | None) -> Iterator[Damage]:
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


def _named_in(error: DamageError, store: CheckedStore, paths: Sequence[str]) -> str:
    """The file that an error's line begins with."""
    return next((path for path in paths if str(error).startswith(f"{store.location.at(path)}: ")), paths[0])


def _value_damage(store: CheckedStore, name: str, path: str, file: OpenFile) -> Iterator[Damage]:
    """Every sample whose values are not those of its checksum."""
    for array in store.layout.arrays:
        of_file, row = store.data_file(array)
        if of_file != name:
            continue
        places = file.places[row]
        memory = np.empty(int(places[:, 1].max(initial=0)), np.uint8)
        for position in np.flatnonzero(places[:, 0] >= 0).tolist():
            offset, length, *known = places[position].tolist()
            try:
                read_ranges(Ranges([file.descriptor], [offset], [memory[:length]], known or None))
            except RangeError as error:
                sample = file.key[3] * store.layout.block + position
                yield Damage(path, f"{array.name}: {error}", sample)


def _frame_damage(store: CheckedStore, record: FileRecord, values: NDArray[np.int64]) -> Iterator[Damage]:
    if frame_digest(Path(store.opener.local([record.path])[0]), values) != record.digest:
        yield Damage(record.path, "its headers, checksums or index are not those that were written")


def _disagreement(store: CheckedStore, view: int, block: int) -> Iterator[Damage]:
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
