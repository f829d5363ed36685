"""An index of ImageNet's size, with keys as long as its."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.images.index import ShardIndex
from pipeline.images.index_file import Columns, IndexHeader, hash_keys, join_keys
from pipeline.images.source import Stamp

SAMPLES = 1_281_167

PROBE = """
import json, sys, time
from pathlib import Path
from pipeline.images.index import ShardIndex
def peak_mb():  # ru_maxrss would begin with the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak_mb()
start = time.perf_counter()
index = ShardIndex.open(sys.argv[1])
opened = time.perf_counter() - start
start = time.perf_counter()
rows = [index.find(f"n{row % 1000:08d}/n{row % 1000:08d}_{row}") for row in range(0, len(index), 1000)]
found = (time.perf_counter() - start) / len(rows)
assert rows == list(range(0, len(index), 1000))
start = time.perf_counter()
key = index.data_key()
keyed = time.perf_counter() - start
seconds = {"open_s": opened, "find_s": found, "data_key_s": keyed}
print(json.dumps(seconds | {"peak_mb": peak_mb(), "start_mb": before}))
"""


@pytest.mark.slow
def test_an_index_of_imagenets_size_opens_within_two_seconds_and_500_mb(tmp_path):
    keys = [f"n{row % 1000:08d}/n{row % 1000:08d}_{row}" for row in range(SAMPLES)]
    key_bytes, key_ends = join_keys(keys)
    hashes, order = hash_keys(keys)
    rows = np.arange(SAMPLES)
    columns = Columns(
        key_bytes,
        key_ends,
        shard=(rows // 1000).astype(np.int32),
        suffix=np.zeros(SAMPLES, np.uint16),
        offset=rows % 1000 * 111_000,
        size=np.full(SAMPLES, 110_000),
        label=(rows % 1000).astype(np.int32),
        digest=np.random.default_rng(0).integers(0, 256, (SAMPLES, 32), np.uint8),
        hashes=hashes,
        order=order,
    )
    shards = tuple(f"train-{number:06d}.tar" for number in range(1282))
    stamps = (Stamp(140_000_000, 1.5),) * len(shards)
    path = tmp_path / "images.index"
    ShardIndex(columns, IndexHeader("/data", "tars", "/data", shards, stamps, (".jpg",))).save(path)
    run = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, check=True, text=True)
    measured = json.loads(run.stdout) | {"file_mb": path.stat().st_size / 1e6}
    assert measured["open_s"] < 2, measured
    assert measured["peak_mb"] < 500, measured
