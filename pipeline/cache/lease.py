"""Leases: which writer works on a block now, and how the block of a killed writer becomes free again.

Several extractions share the work and none is done twice. A lease is a file `<name>.<generation>.json` made by
create-exclusive. Its owner renews it; where it has expired, or its owner is a process of this machine that no longer
lives, one other writer makes the next generation and the first owner has lost it. A writer asks `Lease.confirm`
immediately before it publishes: a lease that is lost, or could not be renewed in time, publishes nothing.

What this rests on: create-exclusive is atomic (see `Location.create_exclusive`), and clocks of different machines agree
to well under the expiry time. A writer that is frozen between `confirm` and its rename for longer than the expiry time
may still rename; `verify --deep` finds the block whose files are then not those of its record.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

from pipeline.processes import is_alive
from pipeline.storage import Location, MissingFileError
from sak.errors import SakError

SECONDS = 120.0


@dataclass(frozen=True)
class Owner:
    """A writer: the machine (with its boot and its process namespace), the process and when it started.

    The start tells a process from a later one of the same number.
    """

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


class LeaseLostError(SakError):
    """Another writer has taken the block over; what this one made of it must not be published."""


@dataclass(frozen=True)
class _Held:
    """What a lease file says. `expires` is in seconds since the epoch."""

    owner: Owner
    expires: float

    def to_bytes(self) -> bytes:
        return json.dumps({**vars(self.owner), "expires": self.expires}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Held | None":
        """None where the file is damaged; it is then treated as expired."""
        try:
            read: dict[str, Any] = json.loads(data)
            owner = Owner(str(read["host"]), int(read["process"]), int(read["started"]), str(read["token"]))
            return cls(owner, float(read["expires"]))
        except (ValueError, KeyError, TypeError):
            return None

    def is_free(self, now: float) -> bool:
        return now >= self.expires or self.owner.is_dead()


class Leases:
    """All leases in one folder; one object may be used by several threads."""

    def __init__(self, location: Location, *, owner: Owner | None = None, seconds: float = SECONDS) -> None:
        """`seconds`: how long a lease lives without a renewal."""
        self.location = location
        self.owner = owner or Owner.here()
        self.seconds = seconds

    def acquire(self, name: str) -> "Lease | None":
        """The lease called `name`; None where another living writer holds it."""
        generations = self.generations(name)
        if generations and (held := self.read(name, generations[-1])) and not held.is_free(time.time()):
            return None
        generation = generations[-1] + 1 if generations else 1
        lease = Lease(self, name, generation)
        if not self.location.create_exclusive(lease.file, lease.renewed()):
            return None
        return lease

    def held(self) -> list[str]:
        """Names of the leases that a living writer holds now."""
        last = dict(sorted(self._files()))  # of several generations the last one stays
        held = {name: self.read(name, generation) for name, generation in last.items()}
        return [name for name, lease in held.items() if lease and not lease.is_free(time.time())]

    def _files(self) -> Iterable[tuple[str, int]]:
        for file in self.location.list():
            name, _, rest = file.rpartition(".json")[0].rpartition(".")
            if name and rest.isdecimal():
                yield name, int(rest)

    def generations(self, name: str) -> list[int]:
        """Numbers of the files that a lease of this name has had, oldest first."""
        return sorted(generation for other, generation in self._files() if other == name)

    def read(self, name: str, generation: int) -> _Held | None:
        """What a lease's file says; None where it is gone."""
        with suppress(MissingFileError):
            return _Held.from_bytes(self.location.read_bytes(_file(name, generation)))
        return None


def _file(name: str, generation: int) -> str:
    return f"{name}.{generation}.json"


class Lease:
    """A lease that was acquired; renew it, confirm it before publishing, release it. Usable as a context."""

    def __init__(self, leases: Leases, name: str, generation: int) -> None:
        self.leases = leases
        self._lock = Lock()
        self._expires = 0.0
        self._lost = False
        self.name = name
        self.generation = generation

    @property
    def file(self) -> str:
        """Its file in the folder of leases."""
        return _file(self.name, self.generation)

    def renewed(self) -> bytes:
        """What its file says from now on."""
        self._expires = time.time() + self.leases.seconds
        return _Held(self.leases.owner, self._expires).to_bytes()

    def confirm(self) -> None:
        """Renew; LeaseLostError where it is another's now or expired before it could be renewed."""
        with self._lock:
            if self._lost or time.time() >= self._expires or not self._is_ours():
                self._lost = True
                raise LeaseLostError(
                    f"{self.leases.location.at(self.file)}: this lease went to another writer; its block is left to it"
                )
            self.leases.location.write_bytes(self.file, self.renewed())

    def _is_ours(self) -> bool:
        if self.leases.generations(self.name)[-1:] != [self.generation]:
            return False
        held = self.leases.read(self.name, self.generation)
        return held is not None and held.owner == self.leases.owner

    def release(self) -> None:
        """Give it back; nothing happens where it was lost."""
        with self._lock:
            if not self._lost and self._is_ours():
                for generation in self.leases.generations(self.name):
                    self.leases.location.delete(_file(self.name, generation))
            self._lost = True

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def kept_alive(lease: Lease) -> Iterator[None]:
    """A thread renews the lease while long work goes on, four times within its expiry time.

    A renewal that fails is left to `Lease.confirm`, which then raises.
    """
    stop = Event()

    def renew() -> None:
        while not stop.wait(lease.leases.seconds / 4):
            with suppress(SakError):
                lease.confirm()

    thread = Thread(target=renew, name="lease-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
