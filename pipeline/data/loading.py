"""Batches loaded by worker processes, in an order that the caller decides: of any data set, and of a cache's views."""

import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms.v2 import functional as transforms

from pipeline.cache.selection import SampleTable
from pipeline.data.augment import generator
from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.views import ViewPolicy, make_view, pixel_crc, render
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
        try:
            return self.load(wanted)
        except SakError as error:
            if get_worker_info() is None:
                raise
            return LoadFailure(str(error))


def load_batches(
    loader: BatchLoader[Wanted, Loaded], wanted: Iterator[Wanted], *, workers: int, pin: bool
) -> Iterator[Loaded]:
    """Every wanted batch, in order, read ahead by `workers` processes (0: here, when asked).

    SakError where one cannot be had, and where one of the processes dies.
    """
    before = signal.getsignal(signal.SIGCHLD)
    children_before = active_children()
    with warnings.catch_warnings():  # the progress line says how long is waited for data; torch counts cores alone
        warnings.filterwarnings("ignore", "This DataLoader will create")
        batches = iter(
            DataLoader(
                loader,
                sampler=wanted,
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
    readers = [child for child in active_children() if child not in children_before]
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


@dataclass(frozen=True)
class PhotometricJitter:
    """Colour changes of the student's input alone, drawn from (seed, epoch, key); the targets stay as they are.

    Factors are drawn from [1 - x, 1 + x].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, pixels: Tensor, *, seed: int, epoch: int, key: str) -> Tensor:
        """(3, H, W) uint8 to the same."""
        draws = generator(seed, epoch, f"jitter\0{key}")
        for name in ("brightness", "contrast", "saturation"):
            spread = getattr(self, name)
            factor = float(draws.uniform(1 - spread, 1 + spread))
            if spread:
                pixels = getattr(transforms, f"adjust_{name}")(pixels, factor)
        return pixels


@dataclass(frozen=True)
class WantedViews:
    """The images of one rank's part of a batch: sample numbers, the view they are seen in, the epoch."""

    samples: Sequence[int]
    view: int
    epoch: int


@dataclass(frozen=True)
class ViewImages:
    """Pixels of some views: (b, 3, H, W) uint8, and their CRCs before any jitter."""

    pixels: Tensor
    crcs: np.ndarray[Any, np.dtype[np.uint32]]


@dataclass
class ViewDataset(BatchLoader[WantedViews, ViewImages]):
    """Renders whole batches; safe to pickle into worker processes."""

    sample_table: SampleTable
    policy: ViewPolicy
    jitter: PhotometricJitter | None = None
    seed: int = 0
    _access: dict[int, ImageAccess] = field(default_factory=dict)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_access": {}}

    def load(self, wanted: WantedViews) -> ViewImages:
        """The pixels of one part of a batch."""
        rendered = [self._render(sample, wanted) for sample in wanted.samples]
        pixels = torch.stack([pixels for pixels, _ in rendered])
        return ViewImages(pixels, np.array([crc for _, crc in rendered], np.uint32))

    def _render(self, sample: int, wanted: WantedViews) -> tuple[Tensor, int]:
        index, row = self.sample_table.image(sample)
        access = self._access.setdefault(id(index), ImageAccess(index))
        key = index.key(row)
        image = decode_rgb(access.read(row))
        values = render(image, make_view(self.policy, key, wanted.view, image.size))
        pixels = torch.from_numpy(values.transpose(2, 0, 1).copy())
        if self.jitter is not None:
            pixels = self.jitter(pixels, seed=self.seed, epoch=wanted.epoch, key=key)
        return pixels, pixel_crc(values)
