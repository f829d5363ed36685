"""Where images lie: shards named by a folder, a pattern or a URL; a folder of images; a folder of class folders.

Also what can be wrong with shards, their index and their images, each one line.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pipeline.storage import Entry, Location, MissingFileError, open_location
from pipeline.storage.location import explain
from sak.errors import SakError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
"""What names an image, in any case; a member `key.seg.png` is not the image of `key`."""

Kind = Literal["tars", "images", "classes"]

_MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ShardError(SakError):
    """The image data cannot be indexed or read; `problems` has a line for each fault found, `shard: member: fault`."""

    def __init__(self, *problems: str) -> None:
        """The message is the first problem and how many more there are."""
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, ...]]:
        """Pickles by its problems, so that it crosses process boundaries whole."""
        return ShardError, self.problems


class IndexFileError(SakError):
    """An index file is damaged, is not one, or was written by a newer version."""


class DamagedIndexError(IndexFileError):
    """An index file is not what was written; building it from the images makes it again."""


class StaleIndexError(SakError):
    """The shards changed since they were indexed."""


class BadImage(SakError):  # noqa: N818 - a verdict on a sample, which extraction puts in quarantine and goes on
    """One image cannot be used; `reason` says why."""

    def __init__(self, reason: str) -> None:
        """The message is the reason."""
        super().__init__(reason)
        self.reason = reason


class ReplayError(SakError):
    """A view made again does not have the pixels the teachers saw."""


@dataclass(frozen=True)
class Stamp:
    """What tells a changed shard: bytes, and seconds since the epoch of its last change where the store says.

    For a folder: the sum over its images, and the newest of them.
    """

    bytes: int
    modified: float | None


@dataclass(frozen=True)
class ImageSource:
    """Images found: `shards` (tars, or folders of images) relative to `root`, sorted, a stamp for each.

    `files` has the images of every folder, sorted; it is empty for tars.
    """

    data: str
    kind: Kind
    root: Location
    shards: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    files: tuple[tuple[Entry, ...], ...] = field(default=(), repr=False)


def find_images(data: str) -> ImageSource:
    """Find shards or image folders.

    `data`: a tar; a folder of tars; a pattern of tars with `{0000..0127}`, `{a,b}`, `*`, `?` or `[..]`; a folder of
    images; a folder of class folders. A local path or any fsspec URL. ShardError where there are none, or a mixture.
    """
    folder = open_location(data)
    path = folder.local_path()
    if path is not None and path.is_file() and not data.endswith(".tar"):
        raise ShardError(f"{folder}: a file that is no .tar; give a tar shard, a folder, or a pattern of shards")
    plain = not any(sign in data for sign in "{*?[") or (not folder.is_remote and folder.exists())
    if plain and not data.endswith(".tar"):
        return _in_folder(folder)
    first, root = _literal_start(folder.url) if not plain else (folder.name, folder.url[: -len(folder.name) - 1])
    base = open_location(root or "/")
    return _tars(folder.url, base, _expand(first, base) if not plain else [first])


def is_image(name: str) -> bool:
    """Whether a file's last extension names an image; hidden files are none."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and "." in name


def _literal_start(pattern: str) -> tuple[str, str]:
    """(pattern below, folder above) the first part that is not literal."""
    cut = pattern.rindex("/", 0, min(pattern.index(sign) for sign in "{*?[" if sign in pattern))
    if pattern[:cut].endswith(("/", ":")) and "://" in pattern:
        raise ShardError(f"{pattern}: the host or bucket must be spelled out; put the pattern into the path")
    return pattern[cut + 1 :], pattern[:cut]


def _expand(pattern: str, root: Location) -> list[str]:
    """Every name the pattern stands for; names with a glob are looked up."""
    names = list(_braces(pattern, pattern))
    globs = [name.split("/") for name in names if any(sign in name for sign in "*?[")]
    shards = {name for name in names if not any(sign in name for sign in "*?[")}
    if globs:
        shards |= {entry.path for entry in root.walk() if any(_matches(entry.path, glob) for glob in globs)}
    if not shards:
        raise ShardError(f"{root.at('')}/{pattern}: no file matches")
    return sorted(shards)


def _matches(path: str, pattern: list[str]) -> bool:
    parts = path.split("/")
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def _braces(text: str, pattern: str) -> Iterator[str]:
    """Brace expansion: `{a,b}` and `{003..010}` (zeros kept), several and nested."""
    braces = _BRACES.search(text)
    if not braces:
        if "{" in text or "}" in text:
            raise ShardError(f"{pattern}: braces do not match; write {{0000..0127}} or {{a,b}}")
        yield text
        return
    inside = braces[1]
    if bounds := _RANGE.fullmatch(inside):
        first, last = int(bounds[1]), int(bounds[2])
        if not first <= last < first + _MOST_NAMES:
            raise ShardError(f"{pattern}: {{{inside}}} must rise, over at most {_MOST_NAMES} names")
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inside.split(",")
    for choice in choices:
        yield from _braces(text[: braces.start()] + choice + text[braces.end() :], pattern)


def _tars(data: str, root: Location, names: list[str]) -> ImageSource:
    entries = _local_entries(root, names) if not root.is_remote else _remote_entries(root, names)
    stamps = tuple(Stamp(entry.bytes, entry.modified) for entry in entries)
    return ImageSource(data, "tars", root, tuple(names), stamps)


def _local_entries(root: Location, names: list[str]) -> list[Entry]:
    entries = []
    for name in names:
        path = Path(root.at(name))
        if not path.is_file():
            raise ShardError(f"{path}: no such shard")
        status = path.stat()
        entries.append(Entry(name, status.st_size, status.st_mtime))
    return entries


def _remote_entries(root: Location, names: list[str]) -> list[Entry]:
    """One listing for each folder; stores that cannot list (plain HTTP) are asked for each size."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    listed = {entry.path: entry for folder in folders for entry in root.walk(folder)}
    entries = []
    for name in names:
        try:
            entries.append(listed.get(name) or Entry(name, root.size(name), None))
        except MissingFileError as error:
            raise ShardError(f"{root.at(name)}: no such shard") from error
    return entries


def _in_folder(folder: Location) -> ImageSource:
    """Whatever one folder holds: tars, images or class folders."""
    names = [name for name in folder.list() if not name.startswith(".")]
    tars = [name for name in names if name.endswith(".tar")]
    if tars and any(map(is_image, names)):
        raise ShardError(f"{folder}: holds both tars and images; give a pattern of the tars, or move one kind away")
    if tars:
        return _tars(folder.url, folder, tars)
    by_folder: dict[str, list[Entry]] = {}
    for entry in sorted(folder.walk() if folder.is_remote else _walk(Path(folder.url)), key=lambda entry: entry.path):
        parent, _, name = entry.path.rpartition("/")
        if is_image(name) and "/." not in f"/{entry.path}":
            by_folder.setdefault(parent, []).append(entry)
    if fault := _fault_of(list(by_folder)):
        below = next((name for name in names if _holds_tars(folder / name)), None)
        raise ShardError(f"{folder}: {fault}" + (f", or {folder / below}, where shards are" if below else ""))
    files = tuple(map(tuple, by_folder.values()))
    kind: Kind = "images" if "" in by_folder else "classes"
    return ImageSource(folder.url, kind, folder, tuple(by_folder), tuple(map(_folder_stamp, files)), files)


def _fault_of(folders: list[str]) -> str | None:
    """What keeps images in these folders from being a data set, and what to do."""
    if not folders:
        return "no tar shards and no images here; give their folder, or a pattern of shards"
    if len(folders) > 1 and "" in folders:
        return "holds images both beside and inside of folders; give one kind"
    deep = next((name for name in folders if "/" in name), None)
    return deep and f"images two folders down, in {deep}; give the folder that holds the class folders"


def _holds_tars(folder: Location) -> bool:
    """Whether shards lie in what may be a folder, as in the one that `sak-cli demo-data` writes."""
    path = folder.local_path()
    return (path is None or path.is_dir()) and any(name.endswith(".tar") for name in folder.list())


def _walk(folder: Path) -> Iterator[Entry]:
    """The images in a local folder and two levels below, through links to folders too, as data sets' subsets have."""

    def refuse(error: OSError) -> None:
        raise explain(error, str(error.filename or folder)) from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        below = Path(parent).relative_to(folder)
        if len(below.parts) == 2:
            folders.clear()
        for name in filter(is_image, names):
            try:
                status = Path(parent, name).stat()
            except OSError as error:
                raise explain(error, str(Path(parent, name))) from error
            yield Entry((below / name).as_posix(), status.st_size, status.st_mtime)


def _folder_stamp(files: tuple[Entry, ...]) -> Stamp:
    times = [entry.modified for entry in files if entry.modified is not None]
    return Stamp(sum(entry.bytes for entry in files), max(times, default=None))
