"""Reads batches ahead, two at a time, as training does, with whichever version of the project is imported.

Started by `checkouts.py` with the column's folder and the size; answers `STORE BATCHES BUSY` by seconds and processor
seconds. A version without a reader process reads in a thread.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cache_parts.version_before import stand_in

BEFORE = stand_in()

from cache_parts.columns import layout, names  # noqa: E402 (the version's own modules by the names of ours)
from cache_parts.measure import processor_seconds  # noqa: E402

from pipeline.cache.stores.base import allocate  # noqa: E402
from pipeline.cache.stores.tar_store import TarStore  # noqa: E402
from pipeline.cache.stores.zarr_store import ZarrStore  # noqa: E402
from pipeline.storage import open_location  # noqa: E402

Ask, Wait = Callable[[np.ndarray], None], Callable[[], object]


def process_reader(store: ZarrStore | TarStore, every: list[str], batch: int) -> tuple[Ask, Wait]:
    """Our reader of today."""
    from cache_parts.peers import OtherProcess

    reader = OtherProcess(store, every, batch, buffers=3)
    return reader.ask, reader.wait


def thread_reader(store: ZarrStore | TarStore, every: list[str], batch: int) -> tuple[Ask, Wait]:
    """A thread that calls the store."""
    buffers = deque(allocate(store.layout, every, batch) for _ in range(3))
    ahead, coming = ThreadPoolExecutor(1), deque()

    def ask(samples: np.ndarray) -> None:
        coming.append(ahead.submit(store.read, 0, samples, every, buffers[0]))
        buffers.rotate(-1)

    return ask, lambda: coming.popleft().result()


def read(ask: Ask, wait: Wait, samples: list[np.ndarray]) -> None:
    """Every batch, two ahead."""
    for batch in samples[:2]:
        ask(batch)
    for number in range(len(samples)):
        wait()
        if number + 2 < len(samples):
            ask(samples[number + 2])


def spin(stop: threading.Event) -> None:
    """A busy Python thread."""
    total = 0
    while not stop.is_set():
        for number in range(1000):
            total += number ^ total & 7


def main() -> None:
    """Answer until the input ends."""
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    of = layout(*map(int, sys.argv[3:]))
    stores = {
        "zarr": ZarrStore(open_location(folder / "zarr0"), of),
        "tar": TarStore(open_location(folder / "tar"), of),
    }
    make = thread_reader if BEFORE else process_reader
    readers = {name: make(store, names(of), batch) for name, store in stores.items()}
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        name, batches, busy = line.split()
        samples = [rng.permutation(of.samples)[:batch] for _ in range(int(batches))]
        stop = threading.Event()
        if busy == "busy":
            threading.Thread(target=spin, args=(stop,)).start()
        cpu, wall = processor_seconds(), time.perf_counter()
        read(*readers[name], samples)
        answer = time.perf_counter() - wall, processor_seconds() - cpu
        stop.set()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
