"""How fast columns are read and written, against one thread's pread and write of the same encoded bytes.

    python benchmarks/cache_io.py [--quick] [--disk FOLDER] [--tmpfs /dev/shm] [--json FILE]

All variants of a table take turns in one run; shares compare best turns. Full size needs 6 GB on the disk.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cache_parts.columns import (
    LEVELS,
    Batch,
    Written,
    content,
    layout,
    names,
    write_all,
    write_block,
    write_column,
    write_safetensors,
)
from cache_parts.measure import Timing, compare, drop_from_page_cache, in_turns, read_from_disk, sync_files
from cache_parts.peers import (
    RawReader,
    Tensorstore,
    ZarrPython,
    raw_writer,
    stream_our_tars,
    stream_safetensors,
    write_with_tensorstore,
    write_with_zarr_python,
)
from report import machine, table, versions

from pipeline.cache.store import allocate
from pipeline.cache.tar_store import TarStore
from pipeline.cache.zarr_store import ZarrStore
from pipeline.storage import Location

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Size:
    """How much is read and written."""

    tokens: int = 576
    channels: int = 768
    samples: int = 512
    block: int = 128
    batch: int = 64
    wide: int = 10_000  # samples of the column whose first batch is timed
    rounds: int = 24
    few: int = 7


QUICK = Size(tokens=64, channels=256, samples=128, block=32, batch=32, wide=512, rounds=4, few=2)


class Reading:
    """Random samples, warm or cold: a new random batch every round, the same for all variants."""

    def __init__(self, written: Written, size: Size) -> None:
        self.written, self.size = written, size
        self.names = names(written.layout)
        self.out = allocate(written.layout, self.names, size.batch)
        for array in self.out.values():
            array[:] = 0
        store = written.zarr[0]
        self.raw = RawReader(store, self.names, self.out)
        self.zarr_python = ZarrPython(written.folders[0], self.names)
        self.tensorstore = Tensorstore(written.folders[0], self.names)
        self.rng = np.random.default_rng(0)
        self.next()

    def next(self) -> None:
        """Choose the next batch."""
        self.samples = self.rng.permutation(self.written.layout.samples)[: self.size.batch]
        self.jobs = self.raw.jobs(self.samples)

    def gigabytes(self, count: int) -> float:
        """Of so many samples."""
        return count * self.written.layout.nbytes / 1e9

    def variants(self) -> dict[str, tuple[Callable[[], object], int]]:
        """Name -> what to run, and how many samples it reads."""
        written, n = self.written, self.size.batch
        few = max(1, n // 8)

        def ours(kind: type[ZarrStore] | type[TarStore], *, verify: bool, threads: int | None) -> Callable[[], object]:
            at = written.zarr[0].location if kind is ZarrStore else written.tar.location
            store = kind(at, written.layout, verify=verify, threads=threads)
            return lambda: store.read(0, self.samples, self.names, self.out)

        def fresh(*, verify: bool) -> Callable[[], object]:
            store = ZarrStore(written.zarr[0].location, written.layout, verify=verify)
            return lambda: store.read(0, self.samples, self.names)

        def one_by_one(*, verify: bool) -> Callable[[], object]:
            store = ZarrStore(written.zarr[0].location, written.layout, verify=verify)
            rows = [{name: array[i : i + 1] for name, array in self.out.items()} for i in range(n)]
            return lambda: [store.read(0, self.samples[i : i + 1], self.names, rows[i]) for i in range(n)]

        return {
            "raw": (lambda: self.raw.read(self.jobs), n),
            "zarr, unchecked, 1 thread": (ours(ZarrStore, verify=False, threads=1), n),
            "zarr, unchecked": (ours(ZarrStore, verify=False, threads=None), n),
            "zarr, unchecked, fresh": (fresh(verify=False), n),
            "zarr, checked, 1 thread": (ours(ZarrStore, verify=True, threads=1), n),
            "zarr, checked": (ours(ZarrStore, verify=True, threads=None), n),
            "zarr, checked, fresh": (fresh(verify=True), n),
            "webdataset, unchecked": (ours(TarStore, verify=False, threads=None), n),
            "webdataset, checked": (ours(TarStore, verify=True, threads=None), n),
            "zarr, unchecked, a call a sample": (one_by_one(verify=False), n),
            "tensorstore": (lambda: self.tensorstore.read(self.samples[:few]), few),
            "zarr-python": (lambda: self.zarr_python.read(self.samples[:few]), few),
        }

    def rows(self, *, cold: bool) -> Rows:
        """The table."""
        variants = self.variants()
        actions = {name: action for name, (action, _) in variants.items()}
        timings = {name: Timing() for name in variants}
        for _ in range(self.size.few if cold else self.size.rounds):
            self.next()
            before = (lambda: drop_from_page_cache(self.written.folders)) if cold else (lambda: None)
            for name, timing in in_turns(actions, 1, before).items():
                timings[name].wall += timing.wall
                timings[name].cpu += timing.cpu
        return compare(timings, {name: self.gigabytes(count) for name, (_, count) in variants.items()}, "raw")


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


def writing(folder: Path, size: Size, *, durable: bool) -> Rows:
    """One block: durable on the disk, or on tmpfs where the processor is all there is."""
    of = layout(size.tokens, size.channels, size.block, size.block)
    batch = content(of, size.batch)
    place = folder / "written"
    zarr = ZarrStore(Location.parse(place), of)

    def clean() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        zarr.prepare(1)  # once a column, not once a block

    def peer(write: Callable[[Path], None]) -> Callable[[], None]:
        def run() -> None:
            write(place)
            if durable:
                sync_files(place)

        return run

    def ours(store: ZarrStore | TarStore) -> Callable[[], None]:
        return lambda: write_block(store, 0, batch)

    variants = {
        "raw": raw_writer(place / "raw", [batch] * (size.block // size.batch), durable=durable),
        "zarr": ours(zarr),
        "webdataset": ours(TarStore(Location.parse(place), of, "{:08d}".format)),
        "webdataset + safetensors": peer(lambda at: write_safetensors(at / "0.tar", of, 0, batch)),
        "tensorstore": peer(lambda at: write_with_tensorstore(at, of, batch)),
        "zarr-python": peer(lambda at: write_with_zarr_python(at, of, batch)),
    }
    timings = in_turns(variants, size.few, clean)
    shutil.rmtree(place)
    return compare(timings, dict.fromkeys(variants, of.samples * of.nbytes / 1e9), "raw")


def python_work(units: int) -> int:
    """What a busy Python thread does."""
    total = 0
    for number in range(units):
        total += number ^ total & 7
    return total


def busy_consumer(written: Written, size: Size) -> Rows:
    """Batches read ahead by one thread while the main thread computes in Python and never lets the GIL go."""
    every = names(written.layout)
    count = min(4 * size.batch, written.layout.samples)
    buffers = [allocate(written.layout, every, count) for _ in range(3)]
    samples = np.random.default_rng(2).permutation(written.layout.samples)[:count]
    store, batches = written.zarr[0], 30

    def read(number: int) -> Batch:
        return store.read(0, samples, every, buffers[number % len(buffers)])

    def read_all() -> None:
        for number in range(batches):
            read(number)

    def consume(units: int) -> None:
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(read, number) for number in range(2)]
            for number in range(batches):
                coming.pop(0).result()
                if number + 2 < batches:
                    coming.append(ahead.submit(read, number + 2))
                python_work(units)

    read_all()
    reading = min(in_turns({"read": read_all}, 3)["read"].wall) / batches
    unit = min(in_turns({"work": lambda: python_work(1_000_000)}, 7)["work"].wall) / 1_000_000
    rows = []
    for share, limit in ((1.0, 1.25), (0.5, 1.1), (0.25, 1.1)):
        units = max(1, int(reading / share / unit))
        turns = in_turns(
            {
                "read": read_all,
                "compute": lambda n=units: [python_work(n) for _ in range(batches)],
                "both": lambda n=units: consume(n),
            },
            size.few,
        )
        best = {name: min(timing.wall) for name, timing in turns.items()}
        rows.append(
            {
                "reading / computing": best["read"] / best["compute"],
                "of the longer": best["both"] / max(best["read"], best["compute"]),
                "at most": limit,
            }
        )
    return rows


def first_batch(folder: Path, size: Size) -> Rows:
    """Opening a column of many samples and reading one random batch."""
    of = layout(size.tokens, size.channels // 12, size.wide, 512)
    location = Location.parse(folder / "wide")
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


def run(size: Size, disk: Path, tmpfs: Path, show: Callable[[str, Rows], None]) -> None:
    """Every table, shown as it is done."""
    of = layout(size.tokens, size.channels, size.samples, size.block)
    show("Writing a block, durable", writing(disk, size, durable=True))
    show("Writing a block, tmpfs", writing(tmpfs, size, durable=False))
    written = write_all(disk, of, content(of, size.batch))
    read_from_disk(written.folders)
    reading = Reading(written, size)
    show("Random samples, warm page cache", reading.rows(cold=False))
    show("Random samples, cold page cache", reading.rows(cold=True))
    show("A whole column in order, warm", streaming(written, size))
    show("Parts of what is there", parts(written, size))
    show("Read ahead of a busy Python thread", busy_consumer(written, size))
    show("First batch of a large column", first_batch(disk, size))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small columns and few turns, to see that it runs")
    parser.add_argument(
        "--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a folder in memory")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else Size()
    tables: dict[str, Rows] = {}

    def show(title: str, rows: Rows) -> None:
        tables[title] = rows
        print(f"\n{title}\n\n{table(rows)}", flush=True)

    about = f"{machine()}; {versions('numpy', 'numba', 'zarr', 'tensorstore', 'webdataset', 'safetensors')}"
    print(f"`{' '.join(['python', *sys.argv])}`\n\n{about}\n\n{size}")
    with tempfile.TemporaryDirectory(dir=chosen.disk) as disk, tempfile.TemporaryDirectory(dir=chosen.tmpfs) as tmpfs:
        run(size, Path(disk), Path(tmpfs), show)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "size": vars(size), "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
