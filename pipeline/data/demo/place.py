"""A folder that appears whole or not at all, beside which nothing is left behind."""

import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data.demo.manifest import NAME, is_demo_data
from sak.errors import SakError, UsageError

PARTIAL, OLD = ".partial", ".old"


@contextmanager
def whole_folder(out: Path, *, room: int, overwrite: bool) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name when the block ends well, and goes when it does not.

    `room` is how many bytes the block may write. What is at `out` is replaced only then, and only if it is an empty
    folder or, with `overwrite`, demo data. Raises UsageError if `out` may not be replaced, SakError for what the
    file system refuses, inside the block too.
    """
    place = _resolved(out)
    _check_replaceable(out, place, overwrite=overwrite)
    made: list[Path] = []
    scratch: Path | None = None
    lock = -1
    try:
        made = _make_parents(place.parent)
        _remove_abandoned(place)
        _check_room(place, room)
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=PARTIAL, dir=place.parent))
        scratch.chmod(0o777 & ~_umask())
        lock = os.open(scratch, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield scratch
        os.sync()
        _swap(scratch, place)
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


def _check_replaceable(out: Path, place: Path, *, overwrite: bool) -> None:
    try:
        if not place.exists():
            return
        if not place.is_dir():
            raise UsageError(f"{out} is a file: name a folder for the demo data")
        if place == Path.cwd() or place in Path.cwd().parents:
            raise UsageError(f"{out} is or holds the folder you are in, which cannot be replaced: name another")
        if place.is_mount():
            raise UsageError(f"{out} is where a file system is mounted, which cannot be replaced: name a folder in it")
        if not any(place.iterdir()):
            return
    except OSError as error:
        raise SakError(_in_one_line(out, error)) from error
    if not overwrite:
        raise UsageError(f"{out} is not empty: name another folder, or give --overwrite to replace demo data there")
    if not is_demo_data(place):
        raise UsageError(
            f"{out} holds something other than demo data (no {NAME} of it): it is not deleted; name another"
        )


def _remove_abandoned(place: Path) -> None:
    """Remove what runs that were killed left beside `place`: a run that lives holds a lock on its scratch folder."""
    for suffix in (PARTIAL, OLD):
        for folder in place.parent.glob(f".{glob.escape(place.name)}.*{suffix}"):
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


def _check_room(place: Path, room: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < room:
        raise SakError(
            f"{place.parent}: {free / 1e6:,.1f} MB free, and the demo data may take {room / 1e6:,.1f} MB; "
            "ask for fewer or smaller images, or free some space"
        )


def _swap(scratch: Path, place: Path) -> None:
    """Put `scratch` where `place` is; the old folder goes only when the new one has its name."""
    old = None
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=OLD, dir=place.parent))
        place.rename(old / place.name)
    try:
        scratch.rename(place)
    except OSError:
        if old is not None:
            (old / place.name).rename(place)
            old.rmdir()
        raise
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _in_one_line(out: Path, error: OSError) -> str:
    where = error.filename or out
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{out}: no space left to write the demo data; free some, or ask for fewer or smaller images"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{out}: not allowed to write there ({error.strerror}: {where}); name a folder of yours"
    return f"{out}: cannot write the demo data there ({error.strerror or error}: {where}); name another folder"
