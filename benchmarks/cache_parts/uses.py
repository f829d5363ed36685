"""How columns are read in use: in order, in part, ahead of a busy consumer, for the first time."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cache_parts.columns import (
    LEVELS,
    Batch,
    Written,
    content,
    layout,
    names,
    write_column,
)
from cache_parts.measure import compare, drop_from_page_cache, in_turns
from cache_parts.peers import (
    OtherProcess,
    ZarrPython,
    stream_our_tars,
    stream_safetensors,
)
from cache_parts.size import Rows, Size

from pipeline.cache.stores.base import allocate
from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location


def parts(written: Written, size: Size) -> Rows:
    """One of four levels, two of three teachers: the share of the time of all, checked, warm."""
    samples = np.random.default_rng(1).permutation(written.layout.samples)[: 2 * size.batch]
    every = names(written.layout)
    outs = [allocate(written.layout, every, len(samples)) for _ in written.zarr]

    def read(teachers: int, levels: tuple[int, ...]) -> None:
        for store, out in zip(written.zarr[:teachers], outs, strict=False):
            wanted = names(written.layout, levels)
            store.read(0, samples, wanted, {name: out[name] for name in wanted})

    read(3, LEVELS)
    timings = in_turns(
        {
            "four levels": lambda: read(1, LEVELS),
            "one level": lambda: read(1, LEVELS[:1]),
            "three teachers": lambda: read(3, LEVELS),
            "two teachers": lambda: read(2, LEVELS),
        },
        size.rounds,
    )
    best = {name: min(timing.wall) for name, timing in timings.items()}
    return [
        {"part": "one of four levels", "of the time": best["one level"] / best["four levels"], "at most": 0.27},
        {"part": "two of three teachers", "of the time": best["two teachers"] / best["three teachers"], "at most": 0.7},
    ]


def streaming(written: Written, size: Size) -> Rows:
    """A whole column in order, warm."""
    every = names(written.layout)
    out = allocate(written.layout, every, size.batch)
    samples = np.arange(written.layout.samples).reshape(-1, size.batch)

    def ours(store: ZarrStore | TarStore) -> Callable[[], None]:
        def read() -> None:
            for batch in samples:
                store.read(0, batch, every, out)

        return read

    def drain(stream: Callable[[], object]) -> Callable[[], None]:
        def read() -> None:
            for _ in stream():  # type: ignore[attr-defined]
                pass

        return read

    variants = {
        "zarr": ours(written.zarr[0]),
        "our tars": ours(written.tar),
        "webdataset + safetensors": drain(lambda: stream_safetensors(written.safetensors)),
        "webdataset on our tars": drain(lambda: stream_our_tars(written.folders[3])),
    }
    timings = in_turns(variants, size.few)
    whole = written.layout.samples * written.layout.nbytes / 1e9
    return compare(timings, dict.fromkeys(variants, whole), "webdataset + safetensors")


def python_work(units: int) -> int:
    """What a busy Python thread does."""
    total = 0
    for number in range(units):
        total += number ^ total & 7
    return total


class ReadAhead:
    """The same batch again and again, two of them ahead of a main thread that computes in Python."""

    batches = 30

    def __init__(self, written: Written, size: Size) -> None:
        self._store, self._names = written.zarr[0], names(written.layout)
        count = min(4 * size.batch, written.layout.samples)
        self._samples = np.random.default_rng(2).permutation(written.layout.samples)[:count]
        self._buffers = [allocate(written.layout, self._names, count) for _ in range(3)]
        self._process = OtherProcess(self._store, self._names, count, buffers=3)

    def by_process(self, units: int = 0) -> None:
        """Another process reads; `units` of work a batch."""
        for _ in range(2):
            self._process.ask(self._samples)
        for number in range(self.batches):
            self._process.wait()
            if number + 2 < self.batches:
                self._process.ask(self._samples)
            python_work(units)

    def by_thread(self, units: int) -> None:
        """A thread of this process reads."""
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._read, number) for number in range(2)]
            for number in range(self.batches):
                coming.pop(0).result()
                if number + 2 < self.batches:
                    coming.append(ahead.submit(self._read, number + 2))
                python_work(units)

    def _read(self, number: int) -> Batch:
        return self._store.read(0, self._samples, self._names, self._buffers[number % len(self._buffers)])


def busy_consumer(written: Written, size: Size) -> Rows:
    """Batches read ahead while the main thread computes in Python: by another process, and by a thread of this one."""
    reader = ReadAhead(written, size)
    reader.by_process()
    reading = min(in_turns({"read": reader.by_process}, 3)["read"].wall) / reader.batches
    unit = min(in_turns({"work": lambda: python_work(1_000_000)}, 7)["work"].wall) / 1_000_000
    rows = []
    for share in (1.0, 0.45, 0.25):
        units = max(1, int(reading / share / unit))
        turns = in_turns(
            {
                "read": reader.by_process,
                "compute": lambda n=units: [python_work(n) for _ in range(reader.batches)],
                "process": lambda n=units: reader.by_process(n),
                "thread": lambda n=units: reader.by_thread(n),
            },
            size.few,
        )
        best = {name: min(timing.wall) for name, timing in turns.items()}
        longer = max(best["read"], best["compute"])
        rows.append(
            {
                "reading / computing": best["read"] / best["compute"],
                "of the longer": best["process"] / longer,
                "at most": 1.1 if best["read"] <= best["compute"] / 2 else 1.25,
                "by a thread": best["thread"] / longer,
            }
        )
    return rows


def first_batch(folder: Path, size: Size) -> Rows:
    """Opening a column of many samples and reading one random batch."""
    of = layout(size.tokens, size.channels // 12, size.wide, 512)
    location = open_location(folder / "wide")
    write_column(ZarrStore(location, of), content(of, size.batch))
    every = names(of)
    samples = np.random.default_rng(3).permutation(of.samples)[: size.batch]

    def ours() -> None:
        store = ZarrStore(location, of)
        store.forget()
        store.read(0, samples, every)

    rows = []
    for cold in (False, True):
        before = (lambda: drop_from_page_cache([folder / "wide"])) if cold else (lambda: None)
        peer = lambda: ZarrPython(folder / "wide", every).read(samples)  # noqa: E731
        timings = in_turns({"zarr": ours, "zarr-python": peer}, size.few, before)
        best = {name: min(timing.wall) for name, timing in timings.items()}
        rows.append(
            {
                "page cache": "cold" if cold else "warm",
                "ours, ms": 1e3 * best["zarr"],
                "zarr-python, ms": 1e3 * best["zarr-python"],
                "of zarr-python's time": best["zarr"] / best["zarr-python"],
                "at most": 0.25,
            }
        )
    shutil.rmtree(folder / "wide")
    return rows
