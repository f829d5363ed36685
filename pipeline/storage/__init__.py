"""Where caches, data and runs lie: a local folder or any fsspec URL, behind one small class."""

from pathlib import Path

from pipeline.storage.local import LocalFolder
from pipeline.storage.location import Entry, Location, MissingFileError, StorageError

__all__ = ["Entry", "Location", "MissingFileError", "StorageError", "open_location"]


def open_location(folder: str | Path | Location) -> Location:
    """A local folder for a path or `file://` URL, a remote one for any other URL; the folder need not exist."""
    if isinstance(folder, Location):
        return folder
    text = str(folder)
    if text.startswith(("file://", "local://")):
        text = text.split("://", 1)[1]
    elif "://" in text:
        from pipeline.storage.remote import RemoteFolder  # fsspec is imported where a URL is

        return RemoteFolder(text.rstrip("/"))
    if not text:
        raise StorageError("an empty path names no folder; give a folder or a URL")
    return LocalFolder(str(Path(text).expanduser().absolute()))
