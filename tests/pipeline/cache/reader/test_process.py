"""Reading in a process of its own: the same bytes and errors, and no trace of it however things end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.reader import batches as batches_module
from pipeline.cache.reader.batches import FeatureBatches, ReadingOrder
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.reader.process import ArraySizes, ProcessReader, SharedMemory
from pipeline.cache.stores.base import DamageError
from sak.errors import SakError

KEYS = tuple(f"n{number:03d}" for number in range(40))
ORDER = ReadingOrder(batch_size=8, seed=3, block=8, window=3)


@pytest.fixture
def cache(writer, made):
    maker = writer(keys=KEYS, spec=made.spec(block=8))
    maker.write("clip", views=1)
    return FeatureCache.open(maker.place)


@pytest.fixture
def reader(cache):
    sizes = ArraySizes.of(cache.stored, 3)
    reader = ProcessReader(cache.stored, sizes)
    yield reader, sizes
    reader.close()


def ask(reader, cache, samples, memory):
    wanted = cache.request(samples, 0)
    reader.submit(0, wanted.pieces, memory)


def same(contents, expected):
    return all((array == expected["clip"][name]).all() for name, array in contents["clip"].items())


def ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def soon(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_another_process_reads_the_same_bytes_into_memory_that_is_used_again(cache, reader):
    reader, sizes = reader
    first, second = SharedMemory(sizes), SharedMemory(sizes)
    ask(reader, cache, [1, 2, 3], first)
    ask(reader, cache, [20, 4, 4], second)
    reader.wait()
    reader.wait()
    assert same(first.contents, cache.read([1, 2, 3]).arrays)
    assert same(second.contents, cache.read([20, 4, 4]).arrays)
    ask(reader, cache, [9, 8, 7], first)
    reader.wait()
    assert same(first.contents, cache.read([9, 8, 7]).arrays)


def test_memory_that_nobody_holds_is_given_back_by_both_processes(cache, reader):
    reader, sizes = reader

    def maps(pid):
        return Path(f"/proc/{pid}/maps").read_text().count("sak-features")

    for _ in range(4):
        memory = SharedMemory(sizes)
        ask(reader, cache, [1, 2, 3], memory)
        reader.wait()
        del memory
    assert maps(os.getpid()) == 0
    assert maps(reader._process.pid) == 1, "the last one, until the next batch"


def test_damage_is_the_error_it_is_here_and_the_next_batch_is_read(cache, reader):
    column = cache.readers["clip"].columns[0]
    path = f"data/{column.store.files(0, 1)[0]}"
    data = bytearray(column.location.read_bytes(path))
    data[10] ^= 1
    column.location.write_bytes(path, bytes(data))
    with pytest.raises(DamageError) as here:
        cache.read([8, 9, 10])
    reader, sizes = reader
    memory = SharedMemory(sizes)
    ask(reader, cache, [8, 9, 10], memory)
    ask(reader, cache, [1, 2, 3], memory)
    with pytest.raises(DamageError) as there:
        reader.wait()
    assert str(there.value) == str(here.value)
    reader.wait()
    assert same(memory.contents, cache.read([1, 2, 3]).arrays)


def test_a_reader_that_is_killed_is_one_error_and_reading_goes_on_with_another(cache):
    batches = FeatureBatches(cache, ORDER, processes=2)
    reading = iter(batches)
    keys = [next(reading).keys]
    os.kill(batches._readers[1]._process.pid, signal.SIGKILL)
    with pytest.raises(SakError, match=r"died \(SIGKILL\).*--resume"):
        keys.extend(batch.keys for batch in reading)
    keys += [batch.keys for batch in batches]
    assert sorted(key for batch in keys for key in batch) == list(KEYS)


def test_nothing_is_left_when_the_batches_are_gone(cache):
    batches = FeatureBatches(cache, ORDER, processes=1)
    batch = next(iter(batches))
    pid = batches._readers[0]._process.pid
    assert not ended(pid)
    del batches
    assert ended(pid)
    assert same(batch.arrays, cache.read(batch.samples).arrays), "its memory stays"


PROGRAM = """
import os, signal, sys, time
from pipeline.cache.reader.batches import FeatureBatches
from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.reader.batches import ReadingOrder
batches = FeatureBatches(FeatureCache.open(sys.argv[1]), ReadingOrder(batch_size=8, block=8, window=3), processes=1)
reading = iter(batches)
next(reading)
print(batches._readers[0]._process.pid, flush=True)
{}
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.killpg(0, signal.SIGINT); time.sleep(9)", -signal.SIGINT),
        ("os.fork() or os._exit(0); os.wait(); next(reading)", 0),
    ],
    ids=["end", "exit", "kill", "interrupt", "fork"],
)
def test_a_reader_ends_with_its_parent_and_says_nothing(cache, then, code):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(then), str(cache.cache)],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
    )
    assert run.returncode == code, run.stderr
    interrupted = ["KeyboardInterrupt"] if code == -signal.SIGINT else []
    assert [line for line in run.stderr.splitlines() if not line.startswith((" ", "Traceback"))] == interrupted
    assert soon(lambda: ended(int(run.stdout)))


def test_memory_that_is_not_there_is_one_line(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SakError, match=r"no memory for .* take smaller batches"):
        SharedMemory(ArraySizes.of(cache.stored, 3))


def test_a_fork_of_the_parent_starts_readers_of_its_own_and_ends_none(cache):
    reader = ProcessReader(cache.stored, ArraySizes.of(cache.stored, 3))
    child = os.fork()
    if not child:
        usable = reader.alive()
        reader.close()
        os._exit(int(usable))
    assert os.waitpid(child, 0)[1] == 0
    assert reader.alive()
    reader.close()
    assert not reader.alive()


def test_small_epochs_are_read_here_and_others_by_processes(cache, monkeypatch):
    def readers():
        batches = FeatureBatches(cache, ORDER)
        next(iter(batches)).release()
        return len(batches._readers)

    assert readers() == 0
    monkeypatch.setattr(batches_module, "_SMALL_EPOCH", 0)
    assert readers() > 0


def test_arrays_lie_on_pages_of_their_own(cache):
    sizes = ArraySizes.of(cache.stored, 3)
    contents = sizes.within(np.zeros(sizes.bytes, np.uint8))
    places = [array.ctypes.data for arrays in contents.values() for array in arrays.values()]
    assert len({place // 4096 for place in places}) == len(places)
    assert {(array.shape, array.dtype.name) for array in contents["clip"].values()} == {
        ((3, *array.shape[1:]), array.dtype.name) for array in cache.read([0]).arrays["clip"].values()
    }
