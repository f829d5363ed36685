"""One ablation at a time in a folder: a lock that its stages hold as well, so that orphans are waited for."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sak.errors import SakError

WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.5


@contextmanager
def held(folder: Path, say: Callable[[str], None], wait: float = WAIT_SECONDS) -> Iterator[int]:
    """The folder's lock; yields its file descriptor, for stages to inherit.

    Where it is held, by a living ablation or by stages of one that was killed, waits for `wait` seconds. SakError then.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline, told = time.monotonic() + wait, False
        while not _taken(descriptor):
            if not told:
                say(f"{folder} is in use; waiting for what runs there to stop")
                told = True
            if time.monotonic() > deadline:
                raise SakError(
                    f"{folder} is in use by another `sak-cli ablate` or by stages that one left; stop them, or choose "
                    "another --out"
                )
            time.sleep(_LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
