"""Who writes: a process of a machine, told apart from every other, also after its number was used again."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.storage.alive import is_alive


@dataclass(frozen=True)
class Owner:
    """A writer: the machine (with its boot and its process namespace), the process and when it started."""

    host: str
    process: int
    started: int
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """A new owner in this process."""
        return cls(_machine(), os.getpid(), _started(os.getpid()) or 0, uuid4().hex)

    def is_dead(self) -> bool:
        """Whether this was a process of this machine that no longer lives."""
        return self.host == _machine() and _started(self.process) != self.started


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip() if boot.exists() else "unknown"
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot_id} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


def _started(process: int) -> int | None:
    """Clock ticks from boot to the start of a process; 0 where the system does not say; None where it is not alive."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() or not is_alive(process) else 0
    fields = status.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])
