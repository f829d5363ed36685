"""Images to the pixels of one view, in threads ahead of whoever uses them."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cache.records import Absent
from pipeline.images.access import ImageAccess
from pipeline.images.decode import decode_rgb
from pipeline.images.errors import BadImage
from pipeline.images.views import Pixels, View, ViewPolicy, make_view, pixel_crc, render

AHEAD = 2  # batches being decoded while one is forwarded


@dataclass(frozen=True)
class DecodedBatch:
    """Some samples of one view: `pixels` uint8 (n, H, W, 3), and what went wrong with others (`absent`)."""

    samples: tuple[int, ...]
    keys: tuple[str, ...]
    pixels: torch.Tensor
    views: tuple[View, ...]
    crcs: tuple[int, ...]
    absent: tuple[Absent, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, rows: Sequence[int]) -> "DecodedBatch":
        """Some of the samples; `absent` stays with the whole."""
        return DecodedBatch(
            tuple(self.samples[row] for row in rows),
            tuple(self.keys[row] for row in rows),
            self.pixels[torch.tensor(rows, dtype=torch.long)],
            tuple(self.views[row] for row in rows),
            tuple(self.crcs[row] for row in rows),
            (),
        )


class ViewSource:
    """Decodes one view of any samples; `pool` does the work of all blocks of a process."""

    def __init__(self, access: ImageAccess, policy: ViewPolicy, pool: ThreadPoolExecutor, *, pin: bool) -> None:
        self.access, self.policy, self._pool, self._pin = access, policy, pool, pin

    def batches(self, samples: Sequence[int], view: int, batch_size: int) -> Iterator[DecodedBatch]:
        """`samples` in order, in groups of `batch_size`, unusable ones left out of their group."""
        groups = deque(samples[start : start + batch_size] for start in range(0, len(samples), batch_size))
        ahead: deque[Future[DecodedBatch]] = deque()
        # Gathering has threads of its own: those of the pool must never wait for one another.
        with ThreadPoolExecutor(AHEAD, "gather") as gather:
            try:
                while groups or ahead:
                    while groups and len(ahead) < AHEAD:
                        ahead.append(gather.submit(self._load, groups.popleft(), view))
                    yield ahead.popleft().result()
            finally:
                for each in ahead:
                    each.cancel()

    def _load(self, samples: Sequence[int], view: int) -> DecodedBatch:
        files = self.access.read_many(samples)
        pixels = torch.empty((len(samples), *self.policy.size, 3), dtype=torch.uint8, pin_memory=self._pin)
        keys = self.access.index.keys(samples)
        made = list(self._pool.map(self._decode, files, keys, [view] * len(keys), pixels.numpy()))
        good = [row for row, each in enumerate(made) if not isinstance(each, str)]
        views = [each for each in made if not isinstance(each, str)]
        absent = [Absent(samples[row], keys[row], each) for row, each in enumerate(made) if isinstance(each, str)]
        return DecodedBatch(
            tuple(samples[row] for row in good),
            tuple(keys[row] for row in good),
            pixels if len(good) == len(samples) else pixels[torch.tensor(good, dtype=torch.long)],
            tuple(view for view, _ in views),
            tuple(crc for _, crc in views),
            tuple(absent),
        )

    def _decode(self, file: bytes, key: str, number: int, out: Pixels) -> tuple[View, int] | str:
        """The view written to `out` and its CRC; the reason where the image cannot be used."""
        try:
            image = decode_rgb(file)
            view = make_view(self.policy, key, number, image.size)
            pixels = render(image, view)
        except BadImage as error:
            return error.reason
        np.copyto(out, pixels)
        return view, pixel_crc(pixels)
