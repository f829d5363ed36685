"""Workers, kills, interrupts, two runs at once: the command line in processes of its own."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cache.tools.verify import verify

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Extraction:
    """`sak-cli extract` in a session of its own, so that whatever it leaves behind can be found."""

    def __init__(self, spec: str, data: str, cache: Path, *options: str) -> None:
        command = [sys.executable, "-m", "cli", "extract", "--spec", spec, "--data", data, "--cache", str(cache)]
        command += ["--batch-size", "8", *(options or ("--device", "cpu", "--workers", "1", "--threads", "1"))]
        self.cache = cache
        self.process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        """What it said; it must end well."""
        said, _ = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, said
        return said

    def wait_for_records(self, count=1) -> None:
        """Until so many blocks are recorded, or it has ended."""
        while self.process.poll() is None and len(list(self.cache.rglob("records/*.json"))) < count:
            time.sleep(0.02)

    def members(self) -> list[int]:
        """Live processes of its session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def wait_until_gone(self, seconds=10.0) -> list[int]:
        """Live processes of its session once none is left, or after some seconds."""
        end = time.monotonic() + seconds
        while self.members() and time.monotonic() < end:
            time.sleep(0.05)
        return self.members()


@pytest.fixture(scope="module")
def spec(tmp_path_factory, write_spec_once) -> str:
    return write_spec_once(tmp_path_factory.mktemp("spec") / "spec.yaml", block=6)


@pytest.fixture(scope="module")
def write_spec_once():
    from importlib.util import module_from_spec, spec_from_file_location

    found = spec_from_file_location("extraction_conftest", Path(__file__).with_name("conftest.py"))
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module.write_spec


@pytest.fixture(scope="module")
def whole(spec, shards, tmp_path_factory) -> Path:
    """A cache that one worker filled without interruption."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    Extraction(spec, shards, cache).finish()
    return cache


@pytest.mark.slow
def test_one_and_four_workers_write_the_same_bytes(whole, spec, shards, tmp_path, bytes_of):
    four = Extraction(spec, shards, tmp_path / "four", "--device", "cpu", "--workers", "4", "--threads", "1")
    assert "4 workers on cpu" in four.finish()
    assert bytes_of(tmp_path / "four") == bytes_of(whole)


@pytest.mark.slow
def test_interrupted_then_terminated_then_killed_it_still_ends_in_the_same_bytes(
    whole, spec, shards, tmp_path, bytes_of
):
    cache = tmp_path / "cache"
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        there = len(list(cache.rglob("records/*.json")))
        run = Extraction(spec, shards, cache)
        run.wait_for_records(there + 1)  # so that this run is at work, and not still starting
        start = time.monotonic()
        if stop == signal.SIGINT:
            os.killpg(run.process.pid, stop)  # as a terminal does: to everybody
        else:
            run.process.send_signal(stop)
        said, _ = run.process.communicate(timeout=60)
        assert run.wait_until_gone(10 - (time.monotonic() - start)) == []
        assert time.monotonic() - start < 10
        assert "Traceback" not in said
        if run.process.returncode != 0:  # it may have come too late
            assert run.process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130), said
        # Killed between a block's files and its record, it leaves files that do not count.
        assert all("block without a record" in each.what for each in verify(str(cache), deep=True).problems)
    Extraction(spec, shards, cache).finish()
    assert bytes_of(cache) == bytes_of(whole)
    assert not list(cache.rglob("*.part"))


@pytest.mark.slow
def test_two_extractions_at_once_share_the_work(whole, spec, shards, tmp_path, bytes_of):
    runs = [Extraction(spec, shards, tmp_path / "cache") for _ in range(2)]
    for run in runs:
        run.finish()
    assert bytes_of(tmp_path / "cache") == bytes_of(whole)
    assert verify(str(tmp_path / "cache"), deep=True).sound


class DaskProcesses:
    """A scheduler and two workers, as a user would start them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / f"scheduler-{random.random()}.json"
        self.processes: dict[str, subprocess.Popen] = {}
        self._start("scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(self._file))
        while not self._file.exists():
            time.sleep(0.05)
        for name in ("worker-1", "worker-2"):
            self.start_worker(name)

    @property
    def address(self) -> str:
        import json

        return json.loads(self._file.read_text())["address"]

    def start_worker(self, name: str) -> None:
        options = ("--nthreads", "2", "--scheduler-file", str(self._file), "--no-nanny", "--no-dashboard")
        self._start(name, *options, "--local-directory", str(self._folder))

    def _start(self, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "dask", name.partition("-")[0], *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes[name] = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **quiet)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments_end_in_the_same_bytes(whole, spec, shards, tmp_path, bytes_of):
    """The main process, a worker or the scheduler, each followed by another run where the run ended."""
    chance = random.Random(20)
    for kill in range(20):
        cache = tmp_path / f"cache-{kill}"
        victim = ("main", "worker", "scheduler")[kill % 3]
        dask = DaskProcesses(tmp_path) if victim != "main" else None
        options = ("--scheduler", dask.address, "--device", "cpu") if dask else ()
        run = Extraction(spec, shards, cache, *options)
        if kill % 2:
            run.wait_for_records(chance.randrange(1, 20))
        else:
            time.sleep(chance.uniform(2, 9))
        time.sleep(chance.uniform(0, 0.3))
        if dask is None:
            run.process.kill()
        elif victim == "worker":
            dask.kill("worker-1")
            dask.start_worker("worker-3")
        else:
            dask.kill("scheduler")
        said, _ = run.process.communicate(timeout=600)
        assert "Traceback" not in said, said
        if dask:
            dask.close()
        assert run.wait_until_gone() == []
        Extraction(spec, shards, cache).finish()
        assert bytes_of(cache) == bytes_of(whole), f"kill {kill}, of the {victim}"
        assert verify(str(cache), deep=True).sound
