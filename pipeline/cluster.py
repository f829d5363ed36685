"""The Dask cluster that extraction runs on: a local one by default, any running scheduler by its address."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.utils import silence_logging_cmgr

from pipeline.processes import usable_cores
from sak.errors import SakError, UsageError

# Preemption is not a fault of the job: a block may lose its worker this often before it counts as one.
ALLOWED_WORKER_LOSSES = 100
BLOCKS_IN_FLIGHT = 2
CONNECT_SECONDS = 30.0
DEVICES = ("cuda", "cpu", "auto")
_THIS_MACHINE = "127.0.0.1"  # nothing is open to the network: whoever reaches a worker runs what he likes

_DASK_SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": ALLOWED_WORKER_LOSSES,
    "distributed.worker.memory.target": False,  # blocks stream through; spilling results to disk would only slow them
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,  # a hundred samples a second of all threads, kept for an hour
    "distributed.comm.timeouts.connect": "30s",
}


@dataclass(frozen=True)
class ClusterConfig:
    """Where extraction runs.

    `scheduler`: address of a running Dask scheduler, None for a cluster of this machine. `device`: `cuda`, `cpu`, or
    `auto`, which takes CUDA where there is a device. `workers`: None for one per visible GPU, or one on the CPU.
    `threads`: CPU threads each worker computes with, None to share out the cores.
    """

    scheduler: str | None = None
    device: str = "cuda"
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing, or would be ignored."""
        if self.device not in DEVICES:
            raise UsageError(f"--device {self.device} is not one of {', '.join(DEVICES)}")
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
            if value is not None and self.scheduler is not None:
                raise UsageError(
                    f"--{name} is for a cluster of this machine, --scheduler names one that runs already: leave it "
                    "out, and start its workers as you want them"
                )


@dataclass(frozen=True)
class Cluster:
    """A connected client, the device type its workers compute on, and what to tell the user about them."""

    client: Client
    device: str
    workers: int
    threads: int
    dashboard: str | None


def resolve_device(wanted: str) -> str:
    """`cuda` or `cpu`; UsageError where CUDA was asked for and there is none."""
    import torch

    if wanted not in DEVICES:
        raise UsageError(f"device {wanted!r} is not one of {', '.join(DEVICES)}")
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "no CUDA device is visible to torch; ask for the CPU with --device cpu (slow), or run on a GPU"
        )
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def visible_gpus() -> tuple[str, ...]:
    """The ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES writes them."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(name.strip() for name in listed.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(index) for index in range(torch.cuda.device_count()))


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """Connect to the scheduler asked for, or start a cluster of this machine that ends with the block."""
    opened = _local_cluster(config) if config.scheduler is None else _running_cluster(config.scheduler, config.device)
    # Dask's own messages about lost connections, tracebacks among them; what matters of them is reported as one line.
    with silence_logging_cmgr(logging.CRITICAL), opened as cluster:
        yield cluster


@contextmanager
def _local_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    device = resolve_device(config.device)
    environments = _worker_environments(config, device)
    with (
        dask.config.set(_DASK_SETTINGS),
        SpecCluster(**_local_spec(environments)) as local,
        Client(local) as client,
    ):
        threads = int(environments[0]["OMP_NUM_THREADS"])
        try:
            yield Cluster(client, device, len(environments), threads, local.dashboard_link or None)
        finally:
            _end_workers(local)


def process_environment(threads: int) -> dict[str, str]:
    """What a process that computes with so many CPU threads is started with; what the user has set stays.

    OpenMP's threads spin while they wait, which takes the cores from the threads that decode, encode and write: beside
    a single busy process the forward is up to 20 times slower for it. Dask has workers give freed memory back at once,
    so that every operation faults it in again: elementwise ones take 10 times longer. One arena serves all threads.
    """
    count = str(threads)
    chosen = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc takes
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }
    kept = {name: os.environ.get(name, value) for name, value in chosen.items()}
    return {**kept, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": "1"}


def _worker_environments(config: ClusterConfig, device: str) -> list[dict[str, str]]:
    """What each worker's process is started with: its GPU (before torch is imported) and its CPU threads."""
    gpus = visible_gpus() if device == "cuda" else ()
    count = config.workers or max(len(gpus), 1)
    common = process_environment(config.threads or max(usable_cores() // count, 1))
    shown = gpus if device == "cuda" else ("",)
    return [{**common, "CUDA_VISIBLE_DEVICES": shown[worker % len(shown)]} for worker in range(count)]


def _end_workers(local: SpecCluster) -> None:
    """End the worker processes at once: they have nothing left to say, and an orderly good-bye takes seconds."""
    for nanny in local.workers.values():
        nanny.auto_restart = False
        process = getattr(nanny.process, "pid", None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def dask_setup(worker: object) -> None:
    """Run in each worker as it starts: Ctrl-C reaches a terminal's whole process group, and ending workers is ours."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _local_spec(environments: list[dict[str, str]]) -> dict[str, Any]:
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": BLOCKS_IN_FLIGHT,
                "memory_limit": 0,
                "host": _THIS_MACHINE,
                "dashboard_address": f"{_THIS_MACHINE}:0",
                "silence_logs": logging.CRITICAL,
                "env": environment,
                "config": {"distributed.nanny.pre-spawn-environ": environment},
                "preload": [__name__],
            },
        }
        for number, environment in enumerate(environments)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": f"{_THIS_MACHINE}:0", "host": _THIS_MACHINE}}
    return {"workers": workers, "scheduler": scheduler, "silence_logs": logging.ERROR}


@contextmanager
def _running_cluster(scheduler: str, device: str) -> Iterator[Cluster]:
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise SakError(
            f"no Dask scheduler answers at {scheduler} ({reason}); start one with `dask scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise SakError(
                f"the Dask scheduler at {scheduler} has no workers; start some with `dask worker --nthreads 2`"
            ) from error
        devices = set(client.run(resolve_device, device).values())
        if len(devices) != 1:
            raise SakError(f"the workers at {scheduler} differ in device ({sorted(devices)}); name one with --device")
        workers = client.scheduler_info(n_workers=-1)["workers"]
        threads = max(client.run(_torch_threads).values())
        yield Cluster(client, devices.pop(), len(workers), threads, client.dashboard_link)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()
