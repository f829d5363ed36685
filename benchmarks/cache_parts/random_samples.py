"""Random samples, warm and cold."""

from collections.abc import Callable

import numpy as np
from cache_parts.columns import Written, names
from cache_parts.measure import Timing, compare, drop_from_page_cache, in_turns
from cache_parts.peers import (
    OtherProcess,
    RawReader,
    Tensorstore,
    ZarrPython,
)
from cache_parts.size import Rows, Size

from pipeline.cache.stores.base import allocate
from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore


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
        self.process = OtherProcess(store, self.names, size.batch)
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

        def ours(kind: type[ZarrStore] | type[TarStore], *, verify: bool) -> Callable[[], object]:
            store = kind(
                (written.zarr[0] if kind is ZarrStore else written.tar).location, written.layout, verify=verify
            )
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
            "zarr, unchecked": (ours(ZarrStore, verify=False), n),
            "zarr, checked": (ours(ZarrStore, verify=True), n),
            "zarr, checked, fresh": (fresh(verify=True), n),
            "zarr, checked, by another process": (lambda: self.process.read(self.samples), n),
            "webdataset, unchecked": (ours(TarStore, verify=False), n),
            "webdataset, checked": (ours(TarStore, verify=True), n),
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
