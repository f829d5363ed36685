"""Batches of crops from a scene pool: a pure function of seed and step, so that a run resumes exactly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.demo.teachers.captions import caption_of, regions_of, things_seen, words_of
from pipeline.demo.teachers.pool import ScenePool

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CropPlan:
    """How a scene is cut: `count` crops of `size` pixels, each of a share of the scene's area in `scale`.

    `jitter` is how far brightness, contrast and saturation stray; `grey` the share of crops without colour. `labels`
    cuts the label maps along, `captions` writes one for each crop and phrases for its regions, `places` says where in
    the scene a crop lies.
    """

    size: int
    scale: tuple[float, float]
    count: int = 1
    jitter: float = 0.2
    grey: float = 0.0
    labels: bool = False
    captions: bool = False
    places: bool = False


@dataclass
class SceneBatch:
    """Crops of one batch by plan: images (B * count, 3, s, s) normalised, crop k of scene b at k * B + b; labels.

    `<plan>.words` are captions, `<plan>.regions` and `<plan>.phrases` as in `Regions`.
    `<plan>.places` (B * count, 4) holds top, left, height and width in parts of the scene; a mirrored crop's left is
    its right edge and its width negative.
    """

    keys: Sequence[str]
    tensors: Mapping[str, Tensor]

    def split(self, parts: int) -> "Sequence[SceneBatch]":
        """Not offered: these batches are small."""
        raise ValueError(f"demo teachers train whole batches, accumulate is {parts}: leave it at 1")

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class SceneBatches:
    """Batches of `batch_size` scenes, all scenes of `indices` once an epoch; the parts of one process are all of it."""

    pool: ScenePool
    indices: NDArray[np.int64]
    plans: Mapping[str, CropPlan]
    batch_size: int
    seed: int
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; what is left over waits for another order."""
        return max(len(self.indices) // self.batch_size, 1)

    def start_at(self, step: int) -> Iterator[SceneBatch]:
        """Endless batches from `step` on."""
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> SceneBatch:
        """The batch of one step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = random_of(self.seed, "epoch", epoch).permutation(self.indices)
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        return cut(self.pool, chosen, self.plans, random_of(self.seed, "crops", step), self.device)


def random_of(seed: int, purpose: str, number: int) -> np.random.Generator:
    """A generator that depends on its arguments alone."""
    digest = sha256(f"demo-teachers/{purpose}/{seed}/{number}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def cut(
    pool: ScenePool,
    indices: NDArray[np.int64],
    plans: Mapping[str, CropPlan],
    rng: np.random.Generator,
    device: torch.device,
) -> SceneBatch:
    """Crops of the scenes `indices` by every plan, with labels where a plan asks for them."""
    records = [pool[int(index)] for index in indices]
    gathered: dict[str, list[Any]] = {"subject": [int(record["subject"]) for record in records]}
    for name, plan in plans.items():
        for _ in range(plan.count):
            for record in records:
                _cut_one(record, name, plan, rng, gathered)
    tensors = {name: _stacked(values).to(device) for name, values in gathered.items()}
    return SceneBatch([str(index) for index in indices], tensors)


def whole(size: int, *, labels: bool = False, captions: bool = False) -> CropPlan:
    """The plan that leaves scenes whole and as they are, to measure on."""
    return CropPlan(size, (1.0, 1.0), jitter=0.0, labels=labels, captions=captions)


def _cut_one(
    record: np.void, name: str, plan: CropPlan, rng: np.random.Generator, gathered: dict[str, list[Any]]
) -> None:
    top, left, height, width = _box(record["rgb"].shape[0], plan.scale, rng)
    flipped = bool(rng.random() < 0.5) and plan.scale != (1.0, 1.0)
    inside = (slice(top, top + height), slice(left, left + width))
    patch = np.array(record["rgb"][inside])
    pixels = torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, size=(plan.size, plan.size), mode="bilinear", align_corners=False, antialias=True)[0]
    pixels = pixels.flip(-1) if flipped else pixels
    gathered.setdefault(name, []).append(_normalised(_jittered(pixels, plan, rng)))
    if plan.places:
        side = record["rgb"].shape[0]
        box = (top, left + width, height, -width) if flipped else (top, left, height, width)
        gathered.setdefault(f"{name}.places", []).append(torch.tensor(box, dtype=torch.float32) / side)
    if not (plan.labels or plan.captions):
        return
    maps = {field: _resized(record[field][inside], plan.size, flipped) for field in ("semantic", "instances", "parts")}
    if plan.labels:
        for field, map_ in maps.items():
            gathered.setdefault(f"{name}.{field}", []).append(torch.from_numpy(map_.astype(np.int64)))
    if plan.captions:
        things = things_seen(maps["semantic"], maps["instances"])
        words = words_of(caption_of(things, int(record["kind"]), rng))
        regions = regions_of(things, maps["semantic"], maps["parts"], rng)
        for field, values in (("words", words), ("regions", regions.maps), ("phrases", regions.words)):
            gathered.setdefault(f"{name}.{field}", []).append(torch.from_numpy(values))


def _box(side: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop with a share of the area in `scale` and an aspect from 3:4 to 4:3."""
    if scale == (1.0, 1.0):
        return 0, 0, side, side
    area = side * side * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(-np.log(4 / 3), np.log(4 / 3)))
    height = int(np.clip(round(np.sqrt(area / aspect)), 8, side))
    width = int(np.clip(round(np.sqrt(area * aspect)), 8, side))
    return int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1)), height, width


def _resized(labels: NDArray[Any], size: int, flipped: bool) -> NDArray[Any]:
    rows = ((np.arange(size) + 0.5) * labels.shape[0] / size).astype(np.int64)
    columns = ((np.arange(size) + 0.5) * labels.shape[1] / size).astype(np.int64)
    resized = labels[rows[:, None], columns[None, :]]
    return resized[:, ::-1].copy() if flipped else resized


def _jittered(pixels: Tensor, plan: CropPlan, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation strayed by factors, some crops grey; (3, s, s) in [0, 1]."""
    if plan.grey > 0 and rng.random() < plan.grey:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    if plan.jitter > 0:
        bright, contrast, colour = rng.uniform(1 - plan.jitter, 1 + plan.jitter, 3).tolist()
        pixels = pixels * bright
        pixels = pixels.mean() + (pixels - pixels.mean()) * contrast
        grey = pixels.mean(0, keepdim=True)
        pixels = (grey + (pixels - grey) * colour).clamp(0, 1)
    return pixels


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _stacked(values: list[Any]) -> Tensor:
    return torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)
