"""A cache's folder: `cache.json`, the saved shard indices, and a folder for every column; and overlays of several."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.cache.manifest import MANIFEST, CacheError, Manifest, data_name, seal, unseal
from pipeline.images.index import ShardIndex
from pipeline.images.source import DamagedIndexError
from pipeline.storage import Location, MissingFileError, open_location
from sak.errors import UsageError

_CACHE = "cache.json"
_KIND = "sak feature cache"
_LAYER = re.compile(r"[a-z][a-z0-9+]+://[^/:]*(?::\d+(?=/))?[^:]*|[^:]+")


@dataclass(frozen=True)
class ColumnId:
    """Which column: `name` is `<teacher>-<spec key>`, `data` the first digits of the data key."""

    name: str
    data: str

    @property
    def path(self) -> str:
        """Inside the cache."""
        return f"columns/{self.name}/{self.data}"

    @property
    def teacher(self) -> str:
        """The part of the name before the key."""
        return self.name.rpartition("-")[0]

    @classmethod
    def of(cls, manifest: Manifest) -> "ColumnId":
        """The column of a manifest."""
        return cls(manifest.name, data_name(manifest.data_key))


@dataclass(frozen=True)
class CacheFolder:
    """One cache, opened. Nothing here writes but `create` and `add_index`."""

    location: Location

    @classmethod
    def open(cls, path: str | Path | Location) -> "CacheFolder":
        """CacheError where there is none, or another thing; NewerSchemaError where a newer version wrote it."""
        location = open_location(path)
        try:
            document = unseal(location.read_bytes(_CACHE), location.at(_CACHE))
        except MissingFileError as error:
            raise CacheError(
                f"{location}: no feature cache here ({_CACHE} is missing); make one with `sak-cli extract`"
            ) from error
        if document.get("kind") != _KIND:
            raise CacheError(f"{location}: {_CACHE} is not that of a feature cache; give a cache's folder")
        return cls(location)

    @classmethod
    def create(cls, path: str | Path | Location) -> "CacheFolder":
        """The cache at `path`, made if there is none."""
        location = open_location(path)
        location.create_exclusive(_CACHE, seal({"kind": _KIND}))
        return cls.open(location)

    def columns(self) -> Iterator[ColumnId]:
        """Every column, by name; a folder without a manifest too, for `verify` to find."""
        for name in self.location.list("columns"):
            for data in self.location.list(f"columns/{name}"):
                yield ColumnId(name, data)

    def at(self, column: ColumnId) -> Location:
        """A column's folder."""
        return self.location / column.path

    def manifest(self, path: ColumnId) -> Manifest:
        """What a column is; DamageError where its manifest is damaged, CacheError where it is gone or another's."""
        location = self.at(path)
        try:
            manifest = Manifest.from_bytes(location.read_bytes(MANIFEST), location.at(MANIFEST))
        except MissingFileError as error:
            raise CacheError(
                f"{location}: a column without a manifest; remove it with `sak-cli cache prune`, or extract it again"
            ) from error
        if ColumnId.of(manifest) != path:
            raise CacheError(
                f"{location}: its manifest is that of {ColumnId.of(manifest).path}; move the folder back where it was"
            )
        return manifest

    def index_path(self, data: str) -> str:
        """Where the shard index of a data key lies."""
        return self.location.at(f"index/{data_name(data)}")

    def data_keys(self) -> list[str]:
        """The first digits of the data keys whose index is here."""
        return self.location.list("index")

    def add_index(self, index: ShardIndex) -> str:
        """Keep a shard index, and with it where the images are; returns its data key."""
        key = index.data_key()
        try:
            self.index(key)
        except (CacheError, DamagedIndexError):  # missing, or damaged
            index.save(self.index_path(key))
        return key

    def index(self, data: str) -> ShardIndex:
        """The shard index of a data key; CacheError where it is not here."""
        try:
            return ShardIndex.open(self.index_path(data))
        except MissingFileError as error:
            raise CacheError(
                f"{self.index_path(data)}: the index of this data is gone; run `sak-cli extract` with that data again"
            ) from error


@dataclass(frozen=True)
class Cache:
    """A cache as commands take it, `rw:ro`: the first folder may be written, those after it are read as well."""

    layers: tuple[CacheFolder, ...]

    @classmethod
    def open(cls, path: "str | Path | Cache") -> "Cache":
        """Every folder of `path` must be a cache."""
        if isinstance(path, Cache):
            return path
        return cls(tuple(CacheFolder.open(layer) for layer in split_overlay(path)))

    @classmethod
    def create(cls, path: str | Path) -> "Cache":
        """As `open`, but the first folder is made a cache if it is none."""
        top, *below = split_overlay(path)
        return cls((CacheFolder.create(top), *(CacheFolder.open(layer) for layer in below)))

    @property
    def top(self) -> CacheFolder:
        """The folder that is written."""
        return self.layers[0]

    @cached_property
    def columns(self) -> dict[ColumnId, tuple[CacheFolder, ...]]:
        """Every column with the folders that hold a part of it, the first one foremost."""
        columns: dict[ColumnId, tuple[CacheFolder, ...]] = {}
        for layer in self.layers:
            for column in layer.columns():
                columns[column] = (*columns.get(column, ()), layer)
        return columns

    def index(self, data: str) -> ShardIndex:
        """The shard index of a data key, from the first folder that has it."""
        holders = [layer for layer in self.layers if data_name(data) in layer.data_keys()]
        return (holders or list(self.layers))[0].index(data)

    def __str__(self) -> str:
        return ":".join(str(layer.location) for layer in self.layers)


def split_overlay(path: str | Path) -> list[str]:
    """`rw:ro` as its folders; URLs keep their colons. A Path, or a chained URL (`simplecache::s3://...`), is one."""
    if isinstance(path, Path) or "::" in path:
        return [str(path)]
    layers = _LAYER.findall(path)
    if not layers:
        raise UsageError(f"{path!r} names no cache; give a folder, a URL, or two of them as rw:ro")
    return layers
