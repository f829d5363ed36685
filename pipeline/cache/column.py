"""A column as it lies in one cache folder: manifest, calibration, records, views, and the store of its arrays."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.calibration import Calibration
from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.folder import CacheFolder, ColumnId
from pipeline.cache.manifest import CacheError, Manifest
from pipeline.cache.records import BlockRecord, file_record, parse_record_name, record_name
from pipeline.cache.stores import FORMATS
from pipeline.cache.stores.base import ROW, DamageError, FileRecord, Rows, rows_from_bytes
from pipeline.cache.stores.blocks import ColumnStore
from pipeline.images.index import ShardIndex
from pipeline.storage import Location, MissingFileError
from sak.errors import UsageError

if TYPE_CHECKING:
    import zarr
    from webdataset import FluidWrapper

CALIBRATION = "calibration.safetensors"
Records = dict[tuple[int, int], BlockRecord]
Present = NDArray[np.bool_]

_REMOTE_READERS = 32
_VIEWS_KEPT = 512  # blocks of a column whose boxes and CRCs stay in memory, 30 kB each


@dataclass(frozen=True)
class Column:
    """One teacher's features of one data set in one cache folder.

    Reading never writes. What was read of records and views is kept; `fresh` forgets it.
    """

    folder: CacheFolder
    id: ColumnId
    manifest: Manifest

    @classmethod
    def open(cls, folder: CacheFolder, column: ColumnId) -> "Column":
        """DamageError or CacheError where the manifest is damaged, gone or another column's."""
        return cls(folder, column, folder.manifest(column))

    def fresh(self) -> "Column":
        """The same column, nothing read yet."""
        return Column(self.folder, self.id, self.manifest)

    @property
    def location(self) -> Location:
        """The column's folder."""
        return self.folder.at(self.id)

    @property
    def random(self) -> bool:
        """Whether its teacher has random weights."""
        return self.manifest.random

    @cached_property
    def index(self) -> ShardIndex:
        """The shard index of its data."""
        return self.folder.index(self.id.data)

    @cached_property
    def store(self) -> ColumnStore:
        """Its arrays."""
        return open_store(self.manifest, self.location / "data", self.folder)

    def zarr_group(self) -> "zarr.Group":
        """Its arrays as zarr opens them, read-only, from a local folder or a remote one; UsageError where it is tars.

        `group["l9/values"]` is (views, samples, *one sample's shape); what is absent reads as the fill value, so ask
        `present`.
        """
        self._lies_as("zarr", "webdataset()")
        import zarr

        return zarr.open_group(self.store.location.url, mode="r", zarr_format=3)

    def webdataset(self, view: int = 0) -> "FluidWrapper":
        """Its samples as webdataset reads them from the tars of `view`, in order; UsageError where it is zarr.

        Each is a dict: `__key__`, and the arrays by their names in the layout (`l9/values`, ...). `shuffle`, `map`,
        `batched` and the like go on from there; the workers of a DataLoader share the tars among them.
        """
        self._lies_as("webdataset", "zarr_group()")
        blocks = sorted(block for (of_view, block), record in self.records.items() if of_view == view and record.files)
        if not blocks:
            raise CacheError(f"{self.location}: no block of view {view} is there; extract it")
        from pipeline.cache.stores.tar_store import tar_samples

        return tar_samples(self.store.location, self.manifest.layout, view, blocks)

    def _lies_as(self, wanted: str, other: str) -> None:
        if self.manifest.format != wanted:
            raise UsageError(
                f"{self.location}: lies as {self.manifest.format}; open it with {other}, or copy it with "
                f"`sak-cli cache copy --format {wanted}`"
            )

    @cached_property
    def records(self) -> Records:
        """The record of every block that is there, by (view, block); blocks of two calibrations are refused."""
        names = [name for name in self.location.list("records") if record_block(name)]
        with ThreadPoolExecutor(_REMOTE_READERS if self.location.is_remote else 1) as pool:
            records = list(pool.map(self.read_record, names))
        self._refuse_two_calibrations(records)
        return {(record.view, record.block): record for record in records}

    def record(self, view: int, block: int) -> BlockRecord | None:
        """The record of one block, read now; None where the block is not there."""
        try:
            return self.read_record(f"{record_name(view, block)}.json")
        except MissingFileError:
            return None

    def read_record(self, name: str) -> BlockRecord:
        """The record in `records/<name>`; DamageError where it is damaged or not of that block."""
        path = f"records/{name}"
        record = BlockRecord.from_bytes(self.location.read_bytes(path), self.location.at(path))
        if f"{record.name}.json" != name:
            raise DamageError(f"{self.location.at(path)}: the record of {record.name}; see `sak-cli cache verify`")
        return record

    def calibration(self) -> Calibration | None:
        """The statistics that its blocks were made with; None where none were published yet."""
        return self._calibration

    @cached_property
    def _calibration(self) -> Calibration | None:
        recorded = next((record.calibration for record in self.records.values() if record.calibration), None)
        published = self.published_calibration(recorded)
        if published is None and recorded:
            raise DamageError(
                f"{self.location.at(CALIBRATION)}: gone, and no block can be read without it; extract the column again"
            )
        return published

    def published_calibration(self, digest: str | None = None) -> Calibration | None:
        """The calibration that lies here now, which must have `digest` where given; None where there is none."""
        try:
            data = self.location.read_bytes(CALIBRATION)
        except MissingFileError:
            return None
        return Calibration.from_bytes(data, digest=digest, source=self.location.at(CALIBRATION))

    def codec(self) -> ColumnCodec:
        """The codecs of its levels, on the CPU."""
        return ColumnCodec(self.manifest, self.calibration())

    @property
    def views(self) -> int:
        """One more than the highest view of which a block is there."""
        return max((view + 1 for view, _ in self.records), default=0)

    def present(self, view: int) -> Present:
        """(samples,): which samples of the data set have features here."""
        return self._marked(view, lambda record: record.present)

    def absent(self, view: int) -> Present:
        """(samples,): which samples cannot have features: bad images."""
        return self._marked(view, lambda record: [(absent.sample, absent.sample + 1) for absent in record.absent])

    def _marked(self, view: int, ranges: Any) -> Present:
        marked = np.zeros(self.manifest.layout.samples, bool)
        for (of_view, _), record in self.records.items():
            if of_view == view:
                for start, stop in ranges(record):
                    marked[start:stop] = True
        return marked

    def stored_views(self, view: int, samples: NDArray[np.int64]) -> Rows:
        """(n,) rows of box, flip and CRC of samples that are present, in the order asked."""
        rows = np.empty(len(samples), ROW)
        blocks, positions = np.divmod(samples, self.manifest.layout.block)
        for block in np.unique(blocks).tolist():
            rows[blocks == block] = self.block_views(view, block)[positions[blocks == block]]
        return rows

    def block_views(self, view: int, block: int) -> Rows:
        """(samples of the block,) rows of box, flip and CRC, zero where absent; DamageError where the file changed."""
        rows = self._views.get((view, block))
        if rows is None:  # another thread may empty what is kept at any moment, so it is never looked up twice
            record = self.records.get((view, block))
            if record is None or record.views is None:
                raise CacheError(f"{self.location}: block {record_name(view, block)} is not there; extract it")
            data = check_file(self.location, record.views)
            count = len(self.manifest.layout.block_samples(block))
            rows = rows_from_bytes(data, count, self.location.at(record.views.path))
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            self._views[view, block] = rows
        return rows

    @cached_property
    def _views(self) -> dict[tuple[int, int], Rows]:
        return {}

    def _refuse_two_calibrations(self, records: list[BlockRecord]) -> None:
        digests = sorted({record.calibration or "none" for record in records})
        if len(digests) > 1:
            raise CacheError(
                f"{self.location}: blocks of {len(digests)} calibrations "
                f"({', '.join(digest[:12] for digest in digests)}), which must not be mixed; "
                "remove the column with `sak-cli cache prune` and extract it again"
            )


def record_block(file: str) -> tuple[int, int] | None:
    """(view, block) of a file's name in `records`; None where it is no record's."""
    return parse_record_name(file.removesuffix(".json")) if file.endswith(".json") else None


def check_file(location: Location, record: FileRecord) -> bytes:
    """A small file of a column, compared with its record; DamageError where it is gone, cut or changed."""
    where = location.at(record.path)
    try:
        data = location.read_bytes(record.path)
    except MissingFileError as error:
        raise DamageError(f"{where}: gone; mend it with `sak-cli cache repair`") from error
    if file_record(record.path, data) != record:
        raise DamageError(f"{where}: damaged, its bytes are not those recorded; mend it with `sak-cli cache repair`")
    return data


@dataclass(frozen=True)
class _SampleKeys:
    """A sample's key by its number; the index is opened when the first is asked for, which is in writing alone."""

    folder: CacheFolder
    data_key: str

    @cached_property
    def _index(self) -> ShardIndex:
        return self.folder.index(self.data_key)

    def __call__(self, sample: int) -> str:
        return self._index.key(sample)


def open_store(manifest: Manifest, location: Location, folder: CacheFolder) -> ColumnStore:
    """The arrays of the column of `manifest` at `location`; opens no file yet."""
    if manifest.format == "zarr":
        from pipeline.cache.stores.zarr_store import ZarrStore

        return ZarrStore(location, manifest.layout)
    if manifest.format == "webdataset":
        from pipeline.cache.stores.tar_store import TarStore

        return TarStore(location, manifest.layout, _SampleKeys(folder, manifest.data_key))
    raise CacheError(f"{location}: format {manifest.format!r}, this version knows {', '.join(FORMATS)}; upgrade sak")
