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


# URL of the column's folder, which of a block's files, view, block.
FileKey = tuple[str, str, int, int]


@dataclass(eq=False)
class OpenFile:
    """A file to read ranges of.

    `places` is (arrays in the file, samples of a block, 2 or 3): offset, -1 where absent, length, and the CRC32C where
    that does not stand in the file behind the range.
    """

    key: FileKey
    descriptor: int
    places: Longs
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
        self._files: OrderedDict[FileKey, OpenFile] = OrderedDict()

    def _after_fork(self) -> None:
        """In a new process: close its copies of the parent's descriptors; its lock may have been held."""
        if self._process != os.getpid():
            for file in self._files.values():
                file.close()
            self._reset()

    def __len__(self) -> int:
        return len(self._files)

    def borrow(
        self, keys: Sequence[FileKey], load: Callable[[list[FileKey]], list[OpenFile]]
    ) -> dict[FileKey, OpenFile]:
        """The files called `keys`, opened by `load` where they are not yet; give every one back."""
        self._after_fork()
        with self._lock:
            lent = {key: file for key in keys if (file := self._files.get(key)) is not None}
            for key, file in lent.items():
                file.users += 1
                self._files.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in lent]
        if missing:
            try:
                loaded = load(missing)
            except BaseException:
                self.give_back(lent.values())
                raise
            lent.update((file.key, file) for file in self._keep(loaded))
        return lent

    def _keep(self, loaded: Iterable[OpenFile]) -> list[OpenFile]:
        """Take newly opened files in, lent once; where another thread was faster, its file instead."""
        kept = []
        with self._lock:
            for new in loaded:
                file = self._files.setdefault(new.key, new)
                if file is not new:
                    new.close()
                file.users += 1
                kept.append(file)
            surplus = max(0, len(self._files) - self.capacity)
            for file in [file for file in self._files.values() if not file.users][:surplus]:
                self._close(file)
        return kept

    def give_back(self, files: Iterable[OpenFile]) -> None:
        """End the loan of what one call of `borrow` returned."""
        with self._lock:
            for file in files:
                file.users -= 1
                if file.dropped and not file.users:
                    file.close()

    def drop(self, url: str) -> None:
        """Close the files of one column, those being read once they are given back."""
        self._drop(lambda file: file.key[0] == url)

    def drop_block(self, url: str, view: int, block: int) -> None:
        """Close the files of one block, which were written anew."""
        self._drop(lambda file: (file.key[0], *file.key[2:]) == (url, view, block))

    def drop_unlinked(self) -> None:
        """Close files that have no name any more, so that their disk space is given back."""
        self._drop(lambda file: file.unlinked)

    def _drop(self, which: Callable[[OpenFile], bool]) -> None:
        self._after_fork()
        with self._lock:
            for file in [file for file in self._files.values() if which(file)]:
                self._close(file)

    def _close(self, file: OpenFile) -> None:
        del self._files[file.key]
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
