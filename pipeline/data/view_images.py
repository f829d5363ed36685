"""The views' pixels: decoded in worker processes, in the order of batches that somebody else decides."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms.v2 import functional as transforms

from pipeline.cache.universe import Universe
from pipeline.data.augment import generator
from pipeline.images.access import ImageAccess
from pipeline.images.decode import decode_rgb
from pipeline.images.views import ViewPolicy, make_view, pixel_crc, render
from sak.errors import SakError

Numbers = Sequence[int]


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
class Wanted:
    """The images of one process's part of a batch: sample numbers, the view they are seen in, the epoch."""

    samples: Numbers
    view: int
    epoch: int


@dataclass(frozen=True)
class ViewImages:
    """Pixels of some views: (b, 3, H, W) uint8, and their CRCs before any jitter."""

    pixels: Tensor
    crcs: np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True)
class LoadFailure:
    """An error of ours in a worker, as its line: raised there, it would come home inside a traceback."""

    message: str


@dataclass
class ViewDataset(Dataset[ViewImages | LoadFailure]):
    """Renders whole batches; safe to pickle into worker processes."""

    universe: Universe
    policy: ViewPolicy
    jitter: PhotometricJitter | None = None
    seed: int = 0
    _access: dict[int, ImageAccess] = field(default_factory=dict)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_access": {}}

    def __getitem__(self, wanted: Wanted) -> ViewImages | LoadFailure:
        """The pixels of one part of a batch; in a worker, what went wrong instead."""
        if get_worker_info() is None:
            return self.load(wanted)
        try:
            return self.load(wanted)
        except SakError as error:
            return LoadFailure(str(error))

    def load(self, wanted: Wanted) -> ViewImages:
        """The pixels of one part of a batch."""
        rendered = [self._render(sample, wanted) for sample in wanted.samples]
        pixels = torch.stack([pixels for pixels, _ in rendered])
        return ViewImages(pixels, np.array([crc for _, crc in rendered], np.uint32))

    def _render(self, sample: int, wanted: Wanted) -> tuple[Tensor, int]:
        index, row = self.universe.image(sample)
        access = self._access.setdefault(id(index), ImageAccess(index))
        key = index.key(row)
        image = decode_rgb(access.read(row))
        values = render(image, make_view(self.policy, key, wanted.view, image.size))
        pixels = torch.from_numpy(values.transpose(2, 0, 1).copy())
        if self.jitter is not None:
            pixels = self.jitter(pixels, seed=self.seed, epoch=wanted.epoch, key=key)
        return pixels, pixel_crc(values)


class _Batches(Sampler[Wanted]):
    def __init__(self, wanted: Iterator[Wanted]) -> None:
        self.wanted = wanted

    def __iter__(self) -> Iterator[Wanted]:
        return self.wanted


def load_images(dataset: ViewDataset, wanted: Iterator[Wanted], *, workers: int, pin: bool) -> Iterator[ViewImages]:
    """Images of every wanted batch, in order, read ahead by `workers` processes (0: here, when asked).

    SakError where an image cannot be had or decoded.
    """
    loader = DataLoader(
        dataset,
        sampler=_Batches(wanted),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_signals_alone if workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, LoadFailure):
            raise SakError(loaded.message)
        yield loaded


@contextmanager
def dead_workers_told(workers: int) -> Iterator[None]:
    """A worker that dies interrupts the process wherever it is, with torch's RuntimeError: SakError of one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SakError(
            f"a process that decodes images died, perhaps for want of memory; lower data.workers ({workers})"
        ) from error


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group: the training process decides when workers end."""
    del worker
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
