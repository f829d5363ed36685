"""One stage as a process of its own: what it says goes to a log; it is asked to stop, and it does not outlive us."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PROGRAM = (sys.executable, "-P", "-m", "cli")  # -P: not a cli.py of the folder that the user is in
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 8192


@dataclass
class Child:
    """A running stage."""

    process: "subprocess.Popen[bytes]"
    log: Path
    offset: int
    started: float

    @classmethod
    def start(
        cls,
        program: Sequence[str],
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str],
        keep_open: int | None = None,
    ) -> "Child":
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches it through us alone.

        `keep_open` is a file descriptor that it inherits: a lock on it is held as long as any stage runs.
        """
        with log.open("ab") as file:
            file.write(f"$ sak-cli {' '.join(arguments)}\n".encode())
            file.flush()
            offset = file.tell()
            process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=() if keep_open is None else (keep_open,),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return cls(process, log, offset, time.monotonic())

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def ask_to_stop(self) -> None:
        """It saves and stops; what was done is kept."""
        if self.ended() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its workers at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """The last thing it said, which is its error where it failed; empty where it said nothing yet."""
        with self.log.open("rb") as file:
            size = _size(file)
            file.seek(max(self.offset, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _size(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _end_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies, however it dies: a stage then saves and stops."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
