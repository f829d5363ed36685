"""Timing variants against each other: in turns, so that whatever else the machine does strikes all alike."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

Action = Callable[[], object]


@dataclass
class Timing:
    """Seconds of wall clock and of processor time of all threads and child processes, one for each turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def processor_seconds() -> float:
    """Of this process, and of its children that live."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in children)


def in_turns(variants: Mapping[str, Action], rounds: int, before: Action = lambda: None) -> dict[str, Timing]:
    """Run every variant once a round, `before` (untimed) ahead of each, beginning with another one each round."""
    timings = {name: Timing() for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            before()
            cpu, wall = processor_seconds(), time.perf_counter()
            variants[name]()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(processor_seconds() - cpu)
    return timings


def compare(timings: Mapping[str, Timing], gigabytes: Mapping[str, float], base: str) -> list[dict[str, object]]:
    """Rows of a table: GB/s (best and median turn), processor seconds a GB, and the speed as a share of `base`'s.

    The share is best turn against best turn: what disturbs the machine only ever slows a turn down.
    """
    best = {name: min(timing.wall) / gigabytes[name] for name, timing in timings.items()}
    return [
        {
            "variant": name,
            "GB/s": 1 / best[name],
            "median": gigabytes[name] / median(timing.wall),
            "CPU s/GB": median(timing.cpu) / gigabytes[name],
            f"of {base}": best[base] / best[name],
            "median of": median(
                a / gigabytes[base] / (b / gigabytes[name])
                for a, b in zip(timings[base].wall, timing.wall, strict=True)
            ),
        }
        for name, timing in timings.items()
    ]


def drop_from_page_cache(folders: Iterable[Path]) -> None:
    """Have the system forget the contents of all files below `folders`; they must be on disk already."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def read_from_disk(folders: Iterable[Path]) -> None:
    """Read all files once after forgetting them, so that the page cache holds all alike, however they were written."""
    folders = list(folders)
    for folder in folders:
        sync_files(folder)
    drop_from_page_cache(folders)
    memory = bytearray(1 << 22)
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.readinto(memory):
                        pass


def sync_files(folder: Path) -> None:
    """Make all files below `folder` durable, for writers that leave it to others."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
