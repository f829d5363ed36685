"""Compiled functions kept on disk, and compiled anew when any file that they were made from changes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

Stamp = tuple[tuple[str, float, int], ...]


def stamp_of(files: Iterable[Path]) -> Stamp:
    """What tells a changed file: numba itself looks only at that of the outermost function, not of those it calls."""
    return tuple((path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(files))


def keep(function: Any, stamp: Stamp) -> Any:
    """`function`, compiled by numba, with its code on disk, where numba finds a folder that may be written."""
    try:
        function.enable_caching()
    except RuntimeError:
        # Neither __pycache__ nor the user's cache folder can be written: each process compiles for itself.
        return function
    function._cache._cache_file._source_stamp = stamp
    return function
