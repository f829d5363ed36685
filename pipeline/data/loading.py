"""Batches loaded by worker processes, in the order of batches that somebody else decides."""

import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from sak.errors import SakError

Wanted = TypeVar("Wanted")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class LoadFailure:
    """An error of ours in a worker, as its line: raised there, it would come home inside a traceback."""

    message: str


class BatchLoader(ABC, Dataset[Loaded | LoadFailure], Generic[Wanted, Loaded]):
    """Loads whole batches; safe to pickle into worker processes."""

    @abstractmethod
    def load(self, wanted: Wanted) -> Loaded:
        """One batch; SakError where it cannot be had."""

    def __getitem__(self, wanted: Wanted) -> Loaded | LoadFailure:
        """One batch; in a worker, what went wrong instead."""
        if get_worker_info() is None:
            return self.load(wanted)
        try:
            return self.load(wanted)
        except SakError as error:
            return LoadFailure(str(error))


class _Batches(Sampler[Wanted]):
    def __init__(self, wanted: Iterator[Wanted]) -> None:
        self.wanted = wanted

    def __iter__(self) -> Iterator[Wanted]:
        return self.wanted


def load_batches(
    loader: BatchLoader[Wanted, Loaded], wanted: Iterator[Wanted], *, workers: int, pin: bool
) -> Iterator[Loaded]:
    """Every wanted batch, in order, read ahead by `workers` processes (0: here, when asked).

    SakError where one cannot be had, and where one of the processes dies.
    """
    before = signal.getsignal(signal.SIGCHLD)
    others = active_children()
    with warnings.catch_warnings():  # the progress line says how long is waited for data; torch counts cores alone
        warnings.filterwarnings("ignore", "This DataLoader will create")
        batches = iter(
            DataLoader(
                loader,
                sampler=_Batches(wanted),
                batch_size=None,
                num_workers=workers,
                pin_memory=pin,
                prefetch_factor=2 if workers else None,
                multiprocessing_context="spawn" if workers else None,
                worker_init_fn=_leave_signals_alone if workers else None,
            )
        )
    if workers and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, before)  # torch's raises anywhere, in the midst of writing a checkpoint too
    readers = [child for child in active_children() if child not in others]
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if not _one_is_dead(readers):
                raise
            raise SakError(
                f"a process that decodes images died, perhaps for want of memory; lower data.workers ({workers})"
            ) from error
        if isinstance(loaded, LoadFailure):
            raise SakError(loaded.message)
        yield loaded


def _one_is_dead(readers: list[BaseProcess]) -> bool:
    """What a process sent can be found broken a moment before its end is seen."""
    for reader in readers:
        reader.join(1 / len(readers))
    return any(reader.exitcode for reader in readers)


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group: the training process decides when workers end."""
    del worker
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
