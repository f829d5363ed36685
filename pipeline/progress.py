"""Progress of long work: a bar with rate and time left on a terminal, plain lines now and then elsewhere.

Stages report through `Update` and `Messages`, and do not know where that is shown.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


Say = Callable[[str], None]


def quiet(message: str) -> None:
    """Say nothing."""
    del message


def no_progress(done: int, total: int, note: str = "") -> None:
    """Show nothing."""
    del done, total, note


@dataclass(frozen=True)
class Messages:
    """How a stage reports to its caller: `say` a line, and show `progress` in images."""

    say: Say = quiet
    progress: Update = no_progress


@contextmanager
def progress_bar(unit: str, *, stream: TextIO | None = None) -> Iterator[Update]:
    """Show progress on `stream` (standard error by default) while the block runs; `unit` names what is counted."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(unit, stream)
        return
    unit_column, rate, left, note = (
        TextColumn(f"{{task.{name}}}") for name in ("description", "fields[rate]", "fields[left]", "fields[note]")
    )
    columns = (unit_column, BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), left, note)
    with Progress(*columns, console=Console(file=stream)) as bar:
        yield _Bar(unit, bar)


class _Pace:
    """Rate and time left, counted from the first report: neither start-up nor what an earlier run did is in them.

    A count that falls is that of the next thing that is done, as extraction after indexing, and begins anew.
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.before = 0
        self.last: int | None = None

    def __call__(self, done: int, total: int) -> tuple[float, float]:
        """Units a second and seconds left; 0 and 0 where they cannot be told yet."""
        now = time.monotonic()
        # A first report that is the last one too counts from the start: there is nothing else to measure.
        begins = not 0 < total <= done if self.last is None else done < self.last
        if begins:
            self.before, self.start = done, now
        self.last = done
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
        pace = f"{rate:,.1f} {self.unit}/s" if rate else ""
        remains = f"{duration(left)} left" if left else ""
        self.bar.update(self.task, completed=done, total=total or None, rate=pace, left=remains, note=note)


class _Lines:
    def __init__(self, unit: str, stream: TextIO) -> None:
        self.unit = unit
        self.stream = stream
        self.last = time.monotonic()
        self.shown = (0, 0, "")
        self.pace = _Pace()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        rate, seconds = self.pace(done, total)
        said_twice = done and (done, total, note) == self.shown  # as the end is
        if said_twice or (now - self.last < LINE_EVERY_SECONDS and (done < total or not total)):
            return
        self.last, self.shown = now, (done, total, note)
        pace = f", {rate:,.1f}/s" if rate else ""
        left = f", {duration(seconds)} left" if seconds else ""
        note = f", {note}" if note else ""
        counted = f"{done:,} of {total:,}" if total else f"{done:,}"
        self.stream.write(f"{counted} {self.unit}{pace}{left}{note}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 20 s`, `5 h 10 min`, `12 d 4 h`."""
    rounded = round(seconds)
    for unit, size, smaller, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rounded >= size:
            return f"{rounded // size} {unit} {rounded % size // step} {smaller}"
    return f"{rounded} s"
