"""This version's reader against that of another checkout, in turns on the same columns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from cache_parts.columns import Written
from cache_parts.measure import drop_from_page_cache
from cache_parts.size import Rows, Size

_HERE = Path(__file__).parents[1]


class Checkout:
    """A process that reads with one checkout of the project."""

    def __init__(self, tree: Path, written: Written, size: Size) -> None:
        shape = (size.tokens, size.channels, size.samples, size.block)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cache_parts.reading_worker",
                *map(str, (written.folders[0].parent, size.batch, *shape)),
            ],
            env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{_HERE}"},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, store: str, batches: int, busy: str) -> tuple[float, float]:
        """Seconds and processor seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{store} {batches} {busy}\n")
        self._process.stdin.flush()
        wall, cpu = json.loads(self._process.stdout.readline())
        return wall, cpu

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def against(written: Written, size: Size, other: Path) -> Rows:
    """Batches read ahead, idle and beside a busy Python thread (whose CPU seconds count), warm and cold."""
    trees = {"other": Checkout(other, written, size), "ours": Checkout(_HERE.parent, written, size)}
    rows = []
    for store in ("zarr", "tar"):
        for tree in trees.values():
            tree.read(store, 3, "idle")
        for busy in ("idle", "busy"):
            for cache in ("warm", "cold"):
                rows.append(
                    {
                        "store": store,
                        "machine": busy,
                        "page cache": cache,
                        **_row(trees, written, size, store, busy, cache),
                    }
                )
    for tree in trees.values():
        tree.close()
    return rows


def _row(
    trees: dict[str, Checkout], written: Written, size: Size, store: str, busy: str, cache: str
) -> dict[str, object]:
    batches = 2 if cache == "cold" else 6
    gigabytes = batches * size.batch * written.layout.nbytes / 1e9
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    for turn in range(size.rounds if cache == "warm" else size.few):
        for name in sorted(trees, reverse=bool(turn % 2)):
            if cache == "cold":
                drop_from_page_cache(written.folders)
            turns[name].append(trees[name].read(store, batches, busy))
    speeds = {name: [gigabytes / wall for wall, _ in of_tree] for name, of_tree in turns.items()}
    return {
        "other, GB/s": max(speeds["other"]),
        "ours, GB/s": max(speeds["ours"]),
        "best of best": max(speeds["ours"]) / max(speeds["other"]),
        "median ratio": median(a / b for a, b in zip(speeds["ours"], speeds["other"], strict=True)),
        "other, CPU s/GB": median(cpu for _, cpu in turns["other"]) / gigabytes,
        "ours, CPU s/GB": median(cpu for _, cpu in turns["ours"]) / gigabytes,
    }
