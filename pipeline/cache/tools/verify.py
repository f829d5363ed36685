"""`cache verify`: whether a cache is what its records say; `deep` reads and decodes every byte."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.calibration import Calibration
from pipeline.cache.column import CALIBRATION, Column, check_file, record_block
from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.folder import Cache, CacheFolder, ColumnId, split_overlay
from pipeline.cache.key import document_key
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import MANIFEST, data_name, unseal
from pipeline.cache.records import BlockRecord
from pipeline.cache.stores.base import DamageError
from pipeline.storage import MissingFileError
from pipeline.tables import human_bytes
from sak.errors import SakError

_CHUNK = 32  # samples decoded at a time
_UNKNOWN = (None, None)


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

    def __str__(self) -> str:
        struck = [] if self.view is None else [f"view {self.view} block {self.block}"]
        struck += [f"sample {self.sample}"] if self.sample else []
        return f"{self.file}: {self.what}" + (f" ({', '.join(struck)})" if struck else "")


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
    def damaged_blocks(self) -> tuple[tuple[ColumnId, int, int], ...]:
        """(column, view, block) of every block that must be extracted again."""
        blocks = {
            (ColumnId(problem.column, problem.data), problem.view, problem.block)
            for problem in self.problems
            if problem.column and problem.data and problem.view is not None and problem.block is not None
        }
        return tuple(sorted(blocks, key=lambda block: (block[0].path, *block[1:])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sound": self.sound}

    def to_text(self) -> str:
        """A line a problem, then one line that sums up."""
        looked = f"{self.columns:,} columns, {self.blocks:,} blocks, {human_bytes(self.nbytes)}"
        how = "read and decoded" if self.deep else "looked at (--deep reads them)"
        missing = f"; {self.missing:,} blocks are not there yet" if self.missing else ""
        verdict = "sound" if self.sound else f"problems found, {len(self.problems):,}"
        commands = " or ".join(f"`sak-cli cache repair {folder}`" for folder in split_overlay(self.cache))
        remedy = "" if self.sound else f"; mend it with {commands}"
        return "\n".join([*map(str, self.problems), f"{verdict}: {looked} {how}{missing}{remedy}"])


def verify(
    cache: str | Path | Cache, *, deep: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Look at every column of every folder of a cache; damage is listed, never raised.

    Shallow: manifests, records, calibrations, the existence, size and index of every file. Deep: every byte against its
    digest, and every sample decoded to finite numbers. `progress` is called with (blocks done, blocks known).
    """
    started = time.perf_counter()
    opened = Cache.open(cache)
    problems: list[Problem] = []
    checks = []
    for folder in opened.layers:
        problems += [*_index_problems(folder), *_identity_problems(folder)]
        for path in folder.columns():
            checks.append(check := _ColumnCheck(folder, path, deep=deep))
            problems += check.column_problems()
    blocks = [(check, record) for check in checks for record in check.records]
    for done, (check, record) in enumerate(blocks, 1):
        problems += check.block_problems(record)
        if progress is not None:
            progress(done, len(blocks))
    return Verification(
        cache=str(opened),
        deep=deep,
        columns=len(checks),
        blocks=len(blocks),
        samples=sum(len(record.samples) for _, record in blocks),
        nbytes=sum(record.nbytes for _, record in blocks),
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


class _ColumnCheck:
    """One column: first what concerns it as a whole, then block by block; `records` are those that can be read."""

    def __init__(self, folder: CacheFolder, path: ColumnId, *, deep: bool) -> None:
        self.deep = deep
        self.records: list[BlockRecord] = []
        self.missing = 0
        self._folder, self._path, self._location = folder, path, folder.at(path)

    @cached_property
    def _column(self) -> Column:
        return Column.open(self._folder, self._path)

    def column_problems(self) -> list[Problem]:
        """What is wrong with manifest, index, calibration, records and stray files."""
        try:
            column = self._column
        except SakError as error:
            return [self._problem(MANIFEST, str(error))]
        problems = [*self._record_problems(), *self._content_problems(), *self._stray_problems()]
        views = max((record.view + 1 for record in self.records), default=0)
        self.missing = views * column.manifest.layout.blocks - len(self.records)
        if views:
            damages = column.store.check_metadata(views)
            problems += [self._problem(f"data/{damage.path}", damage.problem) for damage in damages]
        return problems

    def block_problems(self, record: BlockRecord) -> list[Problem]:
        """What is wrong with one block's files."""
        problems = self._view_problems(record)
        if not record.present:
            return problems
        block = (record.view, record.block)
        try:
            damages = self._column.store.check(*block, record.files, deep=self.deep)
        except SakError as error:
            return [*problems, self._problem("data", str(error), block)]
        problems += [self._problem(f"data/{damage.path}", damage.problem, block, damage.sample) for damage in damages]
        if self.deep and not damages:
            problems += self._decoding_problems(record)
        return problems

    @cached_property
    def _codec(self) -> ColumnCodec | None:
        """By the records that can be read, so that a damaged one is not every block's problem; None where it cannot."""
        try:
            return ColumnCodec(self._column.manifest, self._calibration())
        except SakError:
            return None  # which is a problem of the column, and reported as that

    def _calibration(self) -> Calibration | None:
        digests = sorted({record.calibration for record in self.records if record.calibration is not None})
        calibration = self._column.published_calibration(digests[0] if digests else None)
        if calibration is None and digests:
            raise DamageError("gone, and no block can be read without it")
        return calibration

    def _record_problems(self) -> Iterator[Problem]:
        for name in self._location.list("records"):
            path, block = f"records/{name}", record_block(name)
            if block is None:
                yield self._problem(path, "not a record's name; remove it")
                continue
            try:
                record = self._column.read_record(name)
            except SakError as error:
                yield self._problem(path, str(error), block)
                continue
            if (what := self._misplaced(record)) is not None:
                yield self._problem(path, what, block)
            else:
                self.records.append(record)
        digests = {record.calibration for record in self.records}
        if len(digests) > 1:
            yield self._problem("records", f"blocks of {len(digests)} calibrations; prune the column, extract it again")

    def _misplaced(self, record: BlockRecord) -> str | None:
        layout = self._column.manifest.layout
        if record.block >= layout.blocks:
            return f"block {record.block} of a column of {layout.blocks} blocks"
        named = {*record.samples.tolist(), *(absent.sample for absent in record.absent)}
        inside = named <= set(layout.block_samples(record.block))
        return None if inside else "names samples that are not of its block"

    def _content_problems(self) -> Iterator[Problem]:
        manifest = self._column.manifest
        if (key := document_key(manifest.document)) != manifest.spec_key:
            yield self._problem(MANIFEST, f"its content has key {key}, not its own")
        try:
            samples = len(self._column.index)
        except SakError as error:
            yield self._problem(MANIFEST, f"the index of its data cannot be read: {error}")
        else:
            if samples != manifest.layout.samples:
                yield self._problem(MANIFEST, f"{manifest.layout.samples} samples, its data has {samples}")
        try:
            self._calibration()
        except SakError as error:
            yield self._problem(CALIBRATION, str(error))

    def _stray_problems(self) -> Iterator[Problem]:
        """Files of blocks that have no record: lost, or left by a writer that died; not those being written now."""
        recorded = {name.removesuffix(".json") for name in self._location.list("records")}
        for name in self._location.list("views"):
            stem = name.removesuffix(".bin")
            if stem not in recorded and stem not in Leases(self._location / "leases").held():
                what = "features of a block without a record, which do not count; extract it again"
                yield self._problem(f"views/{name}", what, record_block(f"{stem}.json") or _UNKNOWN)

    def _view_problems(self, record: BlockRecord) -> list[Problem]:
        block, views = (record.view, record.block), record.views
        if views is None:
            return [self._problem("records", "samples without views", block)] if record.present else []
        try:
            if self.deep:
                check_file(self._location, views)
            elif (size := self._location.size(views.path)) != views.bytes:
                return [self._problem(views.path, f"{size} bytes, {views.bytes} were written", block)]
        except SakError as error:
            what = "gone" if isinstance(error, MissingFileError) else str(error)
            return [self._problem(views.path, what, block)]
        return []

    def _decoding_problems(self, record: BlockRecord) -> Iterator[Problem]:
        """Samples that cannot be read, or decode to something that is not a finite number."""
        codec, samples, block = self._codec, record.samples, (record.view, record.block)
        if codec is None:
            return
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            try:
                finite = self._finite(codec, record.view, chunk)
            except SakError as error:
                yield self._problem("data", str(error), block)
                continue
            for sample in chunk[~finite].tolist():
                yield self._problem("data", "decodes to numbers that are not finite", block, sample)

    def _finite(self, codec: ColumnCodec, view: int, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        names = [array.name for array in self._column.manifest.layout.arrays]
        arrays = self._column.store.read(view, samples, names)
        finite = torch.ones(len(samples), dtype=torch.bool)
        for target in codec.decode({name: torch.from_numpy(array) for name, array in arrays.items()}, codec.levels):
            for part in (target,) if isinstance(target, torch.Tensor) else (target.map, target.leftover):
                finite &= part.reshape(len(samples), -1).isfinite().all(1)
        return finite.numpy()

    def _problem(
        self, path: str, what: str, block: tuple[int | None, int | None] = _UNKNOWN, sample: int | None = None
    ) -> Problem:
        file = self._location.at(path)
        key = None if sample is None else self._key(sample)
        return Problem(file, what.removeprefix(f"{file}: "), self._path.name, self._path.data, *block, key)

    def _key(self, sample: int) -> str:
        try:
            return self._column.index.key(sample)
        except (SakError, IndexError):
            return f"number {sample}"
