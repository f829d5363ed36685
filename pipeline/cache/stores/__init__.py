"""The store that a manifest asks for."""

from dataclasses import dataclass
from functools import cached_property

from pipeline.cache.folder import CacheFolder
from pipeline.cache.manifest import CacheError, Manifest
from pipeline.cache.stores.blocks import ColumnStore
from pipeline.images.index import ShardIndex
from pipeline.storage import Location

FORMATS = ("zarr", "webdataset")


@dataclass(frozen=True)
class _Keys:
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

        return TarStore(location, manifest.layout, _Keys(folder, manifest.data_key))
    raise CacheError(f"{location}: format {manifest.format!r}, this version knows {', '.join(FORMATS)}; upgrade sak")
