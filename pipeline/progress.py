"""Progress of long work: a bar with rate and time left on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_SECONDS = 10.0
SHORTEST_SECONDS = 0.5
"""Less work than this has no rate."""


class Update(Protocol):
    """Called with how much is done, of how much (0: not known), and what else to show (`note`)."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show it."""


@contextmanager
def progress_bar(unit: str, *, stream: TextIO | None = None) -> Iterator[Update]:
    """Show progress on `stream` (standard error by default) while the block runs; `unit` names what is counted."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(unit, stream)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        yield _Bar(unit, bar)


class _Pace:
    """Rate and time left, counted from the first report: neither start-up nor what an earlier run did is in them.

    A count that falls is that of the next thing that is done, as extraction after indexing, and begins anew.
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.before: int | None = None
        self.last = 0

    def __call__(self, done: int, total: int) -> tuple[float, float]:
        """Units a second and seconds left; 0 and 0 where they cannot be told yet."""
        now = time.monotonic()
        if done < self.last:
            self.before, self.start = done, now
        self.last = done
        if self.before is None:
            self.before = 0
            if done < total or not total:
                self.before, self.start = done, now
        if now - self.start < SHORTEST_SECONDS:
            return 0.0, 0.0
        rate = (done - self.before) / (now - self.start)
        return rate, max(total - done, 0) / rate if rate > 0 else 0.0


class _Bar:
    def __init__(self, unit: str, bar: Progress) -> None:
        self.unit = unit
        self.bar = bar
        self.task = bar.add_task(unit, total=None, rate="", left="", note="")
        self.pace = _Pace()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        rate, left = self.pace(done, total)
        told = f"{rate:,.1f} {self.unit}/s" if rate else ""
        remains = f"{duration(left)} left" if left else ""
        self.bar.update(self.task, completed=done, total=total or None, rate=told, left=remains, note=note)


class _Lines:
    def __init__(self, unit: str, stream: TextIO) -> None:
        self.unit = unit
        self.stream = stream
        self.last = time.monotonic()
        self.told = (0, 0, "")
        self.pace = _Pace()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        rate, seconds = self.pace(done, total)
        if done and (done, total, note) == self.told:
            return  # the end, said twice
        if now - self.last < LINE_EVERY_SECONDS and (done < total or not total):
            return
        self.last, self.told = now, (done, total, note)
        told = f", {rate:,.1f}/s" if rate else ""
        left = f", {duration(seconds)} left" if seconds else ""
        note = f", {note}" if note else ""
        counted = f"{done:,} of {total:,}" if total else f"{done:,}"
        self.stream.write(f"{counted} {self.unit}{told}{left}{note}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 20 s`, `5 h 10 min`, `12 d 4 h`."""
    whole = round(seconds)
    for unit, size, smaller, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step} {smaller}"
    return f"{whole} s"
