"""Local clusters, running schedulers, devices."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from distributed import LocalCluster

from pipeline import cluster as cluster_module
from pipeline.cluster import (
    BLOCKS_IN_FLIGHT,
    ClusterConfig,
    open_cluster,
    process_environment,
    resolve_device,
    visible_gpus,
)
from sak.errors import SakError, UsageError


def _facts():
    at_ease = os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["MALLOC_TRIM_THRESHOLD_"] != "65536"  # Dask's
    return os.getpid(), torch.get_num_threads(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN and at_ease


def _open_to_the_network(process: int) -> set[str]:
    """Addresses on which a process listens that are not this machine's own, as /proc writes them."""
    sockets = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(str(file.readlink()))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = {fields[1] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets}
    return {address for address in listening if not address.startswith("0100007F:")}


@pytest.mark.slow
def test_a_local_cluster_has_pinned_threads_ignores_ctrl_c_and_leaves_no_process():
    before = _open_to_the_network(os.getpid())
    with open_cluster(ClusterConfig(device="cpu", workers=2, threads=1)) as cluster:
        assert (cluster.device, cluster.workers, cluster.threads) == ("cpu", 2, 1)
        assert cluster.dashboard.startswith("http://127.0.0.1:")
        facts = cluster.client.run(_facts)
        assert len(facts) == 2
        assert all(threads == 1 and as_wanted for _, threads, as_wanted in facts.values())
        info = cluster.client.scheduler_info()["workers"]
        assert {worker["nthreads"] for worker in info.values()} == {BLOCKS_IN_FLIGHT}
        processes = [process for process, *_ in facts.values()]
        assert _open_to_the_network(os.getpid()) == before
        assert not any(map(_open_to_the_network, processes))
        victim = processes[0]
        os.kill(victim, signal.SIGKILL)
        assert sorted(cluster.client.map(lambda x: x + 1, range(5), pure=False), key=str)
    end = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{process}") for process in processes) and time.monotonic() < end:  # noqa: PTH110
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{process}") for process in processes)  # noqa: PTH110


def test_a_process_neither_spins_nor_returns_memory_unless_the_user_says_so(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    environment = process_environment(3)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    assert environment["MALLOC_ARENA_MAX"] == "4"


def test_a_running_scheduler_is_used_as_it_is():
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as running,
        open_cluster(ClusterConfig(scheduler=running.scheduler_address, device="cpu")) as cluster,
    ):
        assert cluster.client.submit(sum, [1, 2]).result() == 3
        assert (cluster.device, cluster.workers) == ("cpu", 1)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"device": "gpu"}, "--device gpu is not one of cuda, cpu, auto"),
        ({"scheduler": "tcp://127.0.0.1:9", "workers": 4}, "--workers is for a cluster of this machine"),
        ({"scheduler": "tcp://127.0.0.1:9", "threads": 2}, "--threads is for a cluster of this machine"),
    ],
)
def test_settings_that_mean_nothing_or_would_be_ignored_are_refused(settings, line):
    with pytest.raises(UsageError, match=line):
        ClusterConfig(**settings)


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(SakError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*; start one with"),
        open_cluster(ClusterConfig(scheduler="tcp://127.0.0.1:9")),
    ):
        pass


def test_a_scheduler_without_workers_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as running,
        pytest.raises(SakError, match="has no workers"),
        open_cluster(ClusterConfig(scheduler=running.scheduler_address, device="cpu")),
    ):
        pass


def test_cuda_that_is_not_there_is_refused_and_never_replaced_silently(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no CUDA device is visible.*--device cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="'gpu' is not one of"):
        resolve_device("gpu")


def test_every_gpu_gets_a_worker_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,3")
    assert visible_gpus() == ("GPU-a", "GPU-b", "3")
    found = cluster_module._worker_environments(ClusterConfig(threads=2), "cuda")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["GPU-a", "GPU-b", "3"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == ()


def test_cpu_workers_see_no_gpu_and_share_the_cores():
    found = cluster_module._worker_environments(ClusterConfig(workers=len(os.sched_getaffinity(0))), "cpu")
    assert {each["CUDA_VISIBLE_DEVICES"] for each in found} == {""}
    assert {each["OMP_NUM_THREADS"] for each in found} == {"1"}
    with pytest.raises(UsageError, match="--workers must be at least 1"):
        cluster_module._worker_environments(ClusterConfig(workers=0), "cpu")
