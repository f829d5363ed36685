"""`cache verify`: whether a cache is what its records say; `deep` reads and decodes every byte."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.calibration import Calibration
from pipeline.cache.column import CALIBRATION, Column, check_file, record_block
from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.folder import Cache, CacheFolder, ColumnPath
from pipeline.cache.key import document_key
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import MANIFEST, data_name, unseal
from pipeline.cache.records import BlockRecord
from pipeline.cache.stores.base import DamageError
from pipeline.images.index import ShardIndex
from pipeline.storage import MissingFileError
from sak.errors import SakError

# What can be wrong with one column: as a whole, and block by block.

_CHUNK = 32  # samples decoded at a time


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the file, what it is, and the block and sample (its key) it strikes where that is known."""

    file: str
    what: str
    column: str | None = None
    data: str | None = None
    view: int | None = None
    block: int | None = None
    sample: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ColumnCheck:
    """One column: first what concerns it as a whole, then block by block."""

    def __init__(self, folder: CacheFolder, place: ColumnPath, *, deep: bool) -> None:
        self.folder, self.place, self.deep = folder, place, deep
        self.location = folder.at(place)
        self.records: list[BlockRecord] = []
        self.missing = 0
        self._column: Column | None = None

    def column_problems(self) -> list[Problem]:
        """What is wrong with manifest, index, calibration, records and stray files."""
        try:
            self._column = Column.open(self.folder, self.place)
        except SakError as error:
            return [self._problem(MANIFEST, str(error))]
        problems = [*self._record_problems(), *self._content_problems(), *self._stray_problems()]
        views = max((record.view + 1 for record in self.records), default=0)
        self.missing = views * self._column.manifest.layout.blocks - len(self.records)
        if views:
            damages = self._column.store.check_metadata(views)
            problems += [self._problem(f"data/{damage.path}", damage.problem) for damage in damages]
        return problems

    def block_problems(self, record: BlockRecord) -> list[Problem]:
        """What is wrong with one block's files."""
        column = self._opened
        problems = self._view_problems(record)
        if not record.present:
            return problems
        try:
            damages = column.store.check(record.view, record.block, record.files, deep=self.deep)
        except SakError as error:
            return [*problems, self._problem("data", str(error), record)]
        problems += [self._problem(f"data/{damage.path}", damage.problem, record, damage.sample) for damage in damages]
        if self.deep and not damages:
            problems += list(self._decoding_problems(record))
        return problems

    @property
    def _opened(self) -> Column:
        if self._column is None:
            raise ValueError(f"{self.location}: a column without a manifest has no blocks")
        return self._column

    @cached_property
    def _codec(self) -> ColumnCodec | None:
        """By the records that can be read, so that a damaged one is not every block's problem; None where it cannot."""
        try:
            calibration = self._published_calibration()
        except SakError:
            return None  # which is a problem of the column, and told as that
        return ColumnCodec(self._opened.manifest, calibration)

    def _published_calibration(self) -> Calibration | None:
        digests = sorted({record.calibration for record in self.records if record.calibration is not None})
        found = self._opened.published_calibration(digests[0] if digests else None)
        if found is None and digests:
            raise DamageError("gone, and no block can be read without it")
        return found

    @cached_property
    def _index(self) -> ShardIndex:
        return self.folder.index(self.place.data)

    def _record_problems(self) -> Iterator[Problem]:
        for name in self.location.list("records"):
            if record_block(name) is None:
                yield self._problem(f"records/{name}", "not a record's name; remove it")
                continue
            try:
                record = self._opened.read_record(name)
            except SakError as error:
                view, block = record_block(name) or (None, None)
                yield self._problem(f"records/{name}", str(error), (view, block))
                continue
            if (what := self._misplaced(record)) is not None:
                yield self._problem(f"records/{name}", what, record)
                continue
            self.records.append(record)
        digests = {record.calibration for record in self.records}
        if len(digests) > 1:
            yield self._problem("records", f"blocks of {len(digests)} calibrations; prune the column, extract it again")

    def _misplaced(self, record: BlockRecord) -> str | None:
        layout = self._opened.manifest.layout
        if record.block >= layout.blocks:
            return f"block {record.block} of a column of {layout.blocks} blocks"
        inside = set(layout.block_samples(record.block))
        named = {*record.samples.tolist(), *(each.sample for each in record.absent)}
        return None if named <= inside else "names samples that are not of its block"

    def _content_problems(self) -> Iterator[Problem]:
        manifest = self._opened.manifest
        if document_key(manifest.document) != manifest.spec_key:
            yield self._problem(MANIFEST, f"its content has key {document_key(manifest.document)}, not its own")
        try:
            samples = len(self._index)
        except SakError as error:
            yield self._problem(MANIFEST, f"the index of its data cannot be read: {error}")
        else:
            if samples != manifest.layout.samples:
                yield self._problem(MANIFEST, f"{manifest.layout.samples} samples, its data has {samples}")
        try:
            self._published_calibration()
        except SakError as error:
            yield self._problem(CALIBRATION, str(error))

    def _stray_problems(self) -> Iterator[Problem]:
        """Files of blocks that have no record: lost, or left by a writer that died; not those being written now."""
        recorded = {record.name for record in self.records}
        broken = {name.removesuffix(".json") for name in self.location.list("records")}
        for name in self.location.list("views"):
            stem = name.removesuffix(".bin")
            if stem not in recorded | broken and stem not in Leases(self.location / "leases").held():
                view, block = record_block(f"{stem}.json") or (None, None)
                what = "features of a block without a record, which do not count; extract it again"
                yield self._problem(f"views/{name}", what, (view, block))

    def _view_problems(self, record: BlockRecord) -> list[Problem]:
        if record.views is None:
            return [self._problem("records", "samples without views", record)] if record.present else []
        try:
            if self.deep:
                check_file(self.location, record.views)
            elif (size := self.location.size(record.views.path)) != record.views.bytes:
                return [self._problem(record.views.path, f"{size} bytes, {record.views.bytes} were written", record)]
        except MissingFileError:
            return [self._problem(record.views.path, "gone", record)]
        except SakError as error:
            return [self._problem(record.views.path, str(error), record)]
        return []

    def _decoding_problems(self, record: BlockRecord) -> Iterator[Problem]:
        """Samples that cannot be read, or decode to something that is not a finite number."""
        codec, samples = self._codec, record.samples
        if codec is None:
            return
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            try:
                finite = self._finite(codec, record.view, chunk)
            except SakError as error:
                yield self._problem("data", str(error), record)
                continue
            for sample in chunk[~finite].tolist():
                yield self._problem("data", "decodes to numbers that are not finite", record, sample)

    def _finite(
        self, codec: ColumnCodec, view: int, samples: np.ndarray[Any, np.dtype[np.int64]]
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        column = self._opened
        names = [array.name for array in column.manifest.layout.arrays]
        read = column.store.read(view, samples, names)
        targets = codec.decode({name: torch.from_numpy(array) for name, array in read.items()}, codec.levels)
        finite = np.ones(len(samples), bool)
        for target in targets:
            parts = (target,) if isinstance(target, torch.Tensor) else (target.map, target.leftover)
            for part in parts:
                finite &= part.flatten(1).isfinite().all(1).numpy() if part.ndim > 1 else part.isfinite().numpy()
        return finite

    def _problem(
        self,
        path: str,
        what: str,
        of: "BlockRecord | tuple[int | None, int | None] | None" = None,
        sample: int | None = None,
    ) -> Problem:
        view, block = (of.view, of.block) if isinstance(of, BlockRecord) else of or (None, None)
        return Problem(
            file=self.location.at(path),
            what=what.removeprefix(f"{self.location.at(path)}: "),
            column=self.place.name,
            data=self.place.data,
            view=view,
            block=block,
            sample=None if sample is None else self._key(sample),
        )

    def _key(self, sample: int) -> str:
        try:
            return self._index.key(sample)
        except (SakError, IndexError):
            return f"number {sample}"


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found; `missing` counts blocks of begun views that are not there yet."""

    cache: str
    deep: bool
    columns: int
    blocks: int
    samples: int
    nbytes: int
    missing: int
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; a cache that is not complete may be sound."""
        return not self.problems

    @property
    def damaged_blocks(self) -> tuple[tuple[ColumnPath, int, int], ...]:
        """(column, view, block) of every block that must be extracted again."""
        found = {
            (ColumnPath(problem.column, problem.data), problem.view, problem.block)
            for problem in self.problems
            if problem.column and problem.data and problem.view is not None and problem.block is not None
        }
        return tuple(sorted(found, key=lambda each: (each[0].path, each[1], each[2])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sound": self.sound}


def verify(
    place: str | Path | Cache, *, deep: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Look at every column of every folder of a cache; damage is listed, never raised.

    Shallow: manifests, records, calibrations, the existence, size and index of every file. Deep: every byte against its
    digest, and every sample decoded to finite numbers. `progress` is told (blocks done, blocks known).
    """
    started = time.perf_counter()
    cache = Cache.open(place)
    problems: list[Problem] = []
    columns, checks = 0, []
    for layer in cache.layers:
        problems += [*_index_problems(layer), *_identity_problems(layer)]
        for column_place in layer.columns():
            columns += 1
            check = ColumnCheck(layer, column_place, deep=deep)
            problems += check.column_problems()
            checks.append(check)
    known = sum(len(check.records) for check in checks)
    done = 0
    for check in checks:
        for record in check.records:
            problems += check.block_problems(record)
            done += 1
            if progress is not None:
                progress(done, known)
    records = [record for check in checks for record in check.records]
    return Verification(
        cache=str(cache),
        deep=deep,
        columns=columns,
        blocks=len(records),
        samples=sum(len(record.samples) for record in records),
        nbytes=sum(record.nbytes for record in records),
        missing=sum(check.missing for check in checks),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
    )


def _index_problems(folder: CacheFolder) -> Iterator[Problem]:
    for name in folder.data_keys():
        file = folder.index_path(name)
        try:
            key = folder.index(name).data_key()
        except SakError as error:
            yield Problem(file, str(error).removeprefix(f"{file}: "))
            continue
        if data_name(key) != name:
            yield Problem(file, f"the index of other data, {data_name(key)}; extract with the right data again")


def _identity_problems(folder: CacheFolder) -> Iterator[Problem]:
    """Remembered digests of weights: a damaged one would stop the next extraction."""
    for name in folder.location.list("identities"):
        path = f"identities/{name}"
        try:
            unseal(folder.location.read_bytes(path), folder.location.at(path))
        except SakError:
            yield Problem(folder.location.at(path), "damaged; the next extraction reads the weights again")
