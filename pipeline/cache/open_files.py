"""Open data files with their indices, shared by a process's stores: a bounded number, none across a fork."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]


@dataclass(eq=False)
class OpenFile:
    """A file to read ranges of: (arrays in it, samples of a block) offsets, -1 where absent, lengths, and checksums.

    `sums` holds CRC32C values, or what `read_ranges` takes instead.
    """

    path: str
    descriptor: int
    offsets: Longs
    lengths: Longs
    sums: Longs
    users: int = 0
    dropped: bool = False

    @property
    def unlinked(self) -> bool:
        """Whether the file was removed or replaced since it was opened."""
        return not os.fstat(self.descriptor).st_nlink

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class OpenFiles:
    """The files used last, open. Those lent out stay open until given back, so no read meets a closed descriptor."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def _after_fork(self) -> None:
        """In a new process: close its copies of the parent's descriptors; its lock may have been held."""
        if self._process != os.getpid():
            for file in self._files.values():
                file.close()
            self._reset()

    def __len__(self) -> int:
        return len(self._files)

    def borrow(self, paths: Sequence[str], load: Callable[[list[str]], list[OpenFile]]) -> list[OpenFile]:
        """The files at `paths`, opened by `load` where they are not yet; give every one back."""
        self._after_fork()
        with self._lock:
            lent = {path: file for path in paths if (file := self._files.get(path)) is not None}
            for path, file in lent.items():
                file.users += 1
                self._files.move_to_end(path)
        missing = [path for path in dict.fromkeys(paths) if path not in lent]
        if missing:
            try:
                loaded = load(missing)
            except BaseException:
                self.give_back(lent.values())
                raise
            lent.update({file.path: file for file in self._keep(loaded)})
        return [lent[path] for path in paths]

    def _keep(self, loaded: Iterable[OpenFile]) -> list[OpenFile]:
        """Take newly opened files in, lent once; where another thread was faster, its file instead."""
        kept = []
        with self._lock:
            for file in loaded:
                if (there := self._files.get(file.path)) is not None:
                    file.close()
                    file = there
                self._files[file.path] = file
                file.users += 1
                kept.append(file)
            self._shrink()
        return kept

    def give_back(self, files: Iterable[OpenFile]) -> None:
        """End the loan of what one call of `borrow` returned."""
        with self._lock:
            for file in set(files):
                file.users -= 1
                if file.dropped and not file.users:
                    file.close()

    def _shrink(self) -> None:
        surplus = len(self._files) - self.capacity
        for path in [path for path, file in self._files.items() if not file.users][: max(surplus, 0)]:
            self._files.pop(path).close()

    def drop_unlinked(self) -> None:
        """Close files that have no name any more, so that their disk space is given back."""
        for path in [path for path, file in list(self._files.items()) if file.unlinked]:
            self.drop(path)

    def drop(self, prefix: str) -> None:
        """Close a file, or with a final slash all in a folder, once nobody reads it."""
        self._after_fork()
        with self._lock:
            under = prefix if prefix.endswith("/") else None
            for path in [path for path in self._files if path == prefix or (under and path.startswith(under))]:
                file = self._files.pop(path)
                file.dropped = True
                if not file.users:
                    file.close()


@lru_cache(maxsize=1)
def open_files() -> OpenFiles:
    """This process's open files: half as many as it may have, at most 4,096; raises the soft limit to have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return OpenFiles(max(16, min(4096, (8192 if soft == resource.RLIM_INFINITY else soft) // 2)))
