"""Where caches, data and runs lie: a local folder or any fsspec URL, behind one small class."""

from pipeline.storage.errors import MissingFileError, StorageError
from pipeline.storage.location import Entry, Location

__all__ = ["Entry", "Location", "MissingFileError", "StorageError"]
