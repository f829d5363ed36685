"""The folder that demo data is written to: its manifest, and how it appears whole or not at all."""

import errno
import fcntl
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.storage.local import fsync_folder
from sak import __version__
from sak.errors import SakError, UsageError

MANIFEST = "manifest.json"
KIND = "sak demo data"


@dataclass(frozen=True)
class Split:
    """`images` in a split, and in how many of them each class is the main one (shards) or visible (trees)."""

    images: int
    classes: Mapping[str, int]


@dataclass(frozen=True)
class DemoManifest:
    """Counts and settings of one folder of demo data.

    `splits` is by data set (imagenet, pascal-context, nyud), then by split. `shards` gives each shard's images,
    `class_names` the meaning of `.cls`. `folders` says where each data set lies.
    """

    seed: int
    images: int
    scenes: int
    size: int
    splits: Mapping[str, Mapping[str, Split]]
    shards: Mapping[str, int]
    class_names: tuple[str, ...]
    folders: Mapping[str, str]
    licence: str = "CC0-1.0"

    def to_json(self) -> str:
        """The manifest as written to disk; it holds no time and no place."""
        return json.dumps({"kind": KIND, "made_by": f"sak {__version__}", **asdict(self)}, indent=1) + "\n"


def is_demo_data(folder: Path) -> bool:
    """Whether `folder` holds a manifest of demo data."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


PARTIAL, OLD = ".partial", ".old"


@contextmanager
def whole_folder(out: Path, *, room: int, overwrite: bool) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name when the block ends well, and goes when it does not.

    `room` is how many bytes the block may write. What is at `out` is replaced only then, and only if it is an empty
    folder or, with `overwrite`, demo data. Raises UsageError if `out` may not be replaced, SakError for what the
    file system refuses, inside the block too.
    """
    target = _resolved(out)
    _check_replaceable(out, target, overwrite=overwrite)
    made: list[Path] = []
    scratch: Path | None = None
    lock = -1
    try:
        made = _make_parents(target.parent)
        _remove_abandoned(target)
        _check_room(target, room)
        scratch = _new_beside(target, PARTIAL)
        lock = os.open(scratch, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield scratch
        os.sync()
        _swap(scratch, target)
        scratch, made = None, []
    except OSError as error:
        raise SakError(_in_one_line(out, error)) from error
    finally:
        if lock >= 0:
            os.close(lock)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _resolved(out: Path) -> Path:
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(out)):
        raise UsageError(f"{out} looks like a URL: demo data is written to a folder of this machine, name one")
    try:
        return out.resolve()
    except RuntimeError as error:  # what Python before 3.13 calls a loop of links
        raise UsageError(f"{out} is a link that leads back to itself: name another folder") from error


def _check_replaceable(out: Path, target: Path, *, overwrite: bool) -> None:
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise UsageError(f"{out} is a file: name a folder for the demo data")
        if target == Path.cwd() or target in Path.cwd().parents:
            raise UsageError(f"{out} is or holds the folder you are in, which cannot be replaced: name another")
        if target.is_mount():
            raise UsageError(f"{out} is where a file system is mounted, which cannot be replaced: name a folder in it")
        if not any(target.iterdir()):
            return
    except OSError as error:
        raise SakError(_in_one_line(out, error)) from error
    if not overwrite:
        raise UsageError(f"{out} is not empty: name another folder, or give --overwrite to replace demo data there")
    if not is_demo_data(target):
        raise UsageError(
            f"{out} holds something other than demo data (no {MANIFEST} of it): it is not deleted; name another"
        )


def _remove_abandoned(target: Path) -> None:
    """Remove what runs that were killed left beside `target`: a run that lives holds a lock on its scratch folder."""
    for suffix in (PARTIAL, OLD):
        for folder in target.parent.glob(f".{glob.escape(target.name)}.*{suffix}"):
            with suppress(OSError):  # somebody else's, or gone by now: not in the way
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing of `parent`; returns what was created, innermost first."""
    missing = []
    at = parent
    while not at.exists():
        missing.append(at)
        at = at.parent
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _check_room(target: Path, room: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < room:
        raise SakError(
            f"{target.parent}: {free / 1e6:,.1f} MB free, and the demo data may take {room / 1e6:,.1f} MB; "
            "ask for fewer or smaller images, or free some space"
        )


def _swap(scratch: Path, target: Path) -> None:
    """Put `scratch` where `target` is; the old folder goes only when the new one has its name."""
    old = None
    if target.exists():
        old = _new_beside(target, OLD)
        target.rename(old / target.name)
    try:
        scratch.rename(target)
    except OSError:
        if old is not None:
            (old / target.name).rename(target)
            old.rmdir()
        raise
    fsync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _new_beside(target: Path, suffix: str) -> Path:
    """A new hidden folder, with the permissions that the umask leaves."""
    folder = target.with_name(f".{target.name}.{uuid4().hex}{suffix}")
    folder.mkdir()
    return folder


def _in_one_line(out: Path, error: OSError) -> str:
    where = error.filename or out
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{out}: no space left to write the demo data; free some, or ask for fewer or smaller images"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{out}: not allowed to write there ({error.strerror}: {where}); name a folder of yours"
    return f"{out}: cannot write the demo data there ({error.strerror or error}: {where}); name another folder"
