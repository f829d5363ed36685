"""ImageNet-like shards: which picture goes where, and tars whose bytes depend on their members alone."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.demo.scenes.compose import generator
from pipeline.demo.things.classes import SUBJECTS


@dataclass(frozen=True)
class Picture:
    """One image to be: its place in the stream, its main class (a row of SUBJECTS), its key."""

    index: int
    label: int
    key: str

    @property
    def subject(self) -> str:
        """The class's name."""
        return SUBJECTS[self.label]


def plan_pictures(images: int, seed: int) -> tuple[Picture, ...]:
    """Which class each image shows: all classes equally often, but for one, in random order."""
    labels = generator("imagenet", seed, 0, "labels").permutation(np.arange(images) % len(SUBJECTS))
    seen = [0] * len(SUBJECTS)
    pictures = []
    for index, label in enumerate(labels.tolist()):
        seen[label] += 1
        pictures.append(Picture(index, label, f"n{99000000 + label:08d}_{seen[label]:06d}"))
    return tuple(pictures)


def plan_shards(images: int, seed: int) -> tuple[int, ...]:
    """How many images each shard holds: uneven, none empty, adding up to `images`."""
    count = min(max(round(images**0.5 / 3), 2 if images > 2 else 1), -(-images // 2))
    weights = generator("imagenet", seed, 0, "shards").uniform(0.5, 1.5, count)
    ends = np.round(np.cumsum(weights) / weights.sum() * images).astype(int)
    sizes = np.maximum(np.diff(ends, prepend=0), 1)
    sizes[int(sizes.argmax())] -= int(sizes.sum()) - images
    if count > 1 and len(set(sizes.tolist())) == 1:
        sizes[0], sizes[-1] = sizes[0] + 1, sizes[-1] - 1
    return tuple(int(size) for size in sizes if size > 0)


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"train-{number:06d}.tar"


def write_shards(folder: Path, sizes: Sequence[int], samples: Iterator[tuple[Picture, bytes]]) -> None:
    """Write pictures with their JPEGs, in order, to shards of the planned sizes: `<key>.jpg` and `<key>.cls` each.

    `.cls` is the class number in digits.
    """
    for number, size in enumerate(sizes):
        with tarfile.open(folder / shard_name(number), "w", format=tarfile.USTAR_FORMAT) as tar:
            for picture, jpeg in islice(samples, size):
                for suffix, content in (("jpg", jpeg), ("cls", str(picture.label).encode())):
                    member = tarfile.TarInfo(f"{picture.key}.{suffix}")
                    member.size, member.mode = len(content), 0o644
                    tar.addfile(member, BytesIO(content))
