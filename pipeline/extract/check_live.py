"""`cache check-live`: run the teachers again on a sample of the cached views, and compare with what the cache holds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from pipeline.cache.column import Column
from pipeline.cache.column_codec import ColumnCodec, LevelFidelity, measure
from pipeline.cache.folder import Cache
from pipeline.cache.manifest import CacheError
from pipeline.cache.selection import Numbers, select_columns
from pipeline.cache.stores.base import StoredViews
from pipeline.cluster import resolve_device
from pipeline.data.live_teachers import build_from_manifest
from pipeline.extract.job import to_images
from pipeline.images.access import ImageAccess, decode_rgb
from pipeline.images.views import replay
from sak.losses.projection import ProjectedTarget
from sak.teachers import Teacher

SLACK = 1.5
"""A sample may be this much harder to encode than the column's mean; int4 of other weights is off by a factor of 10."""

NOISE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}
"""Standardised relative error between two runs of one teacher: other batches, another device."""

_BATCH = 8


@dataclass(frozen=True)
class LiveLevel:
    """One level of one column, live against cached.

    `error` is the relative error of the cached features in the channel-standardised space, `stated` what the column's
    records say of its encoding; `allowed` bounds `error`. `cosine` is the mean map cosine, `cosine_min` the lowest.
    """

    column: str
    random: bool
    level: int
    samples: int
    cosine: float
    cosine_min: float
    error: float
    stated: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the cache is what the teacher says, within its encoding's error."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class LiveReport:
    """All levels that were compared."""

    levels: tuple[LiveLevel, ...]

    @property
    def agrees(self) -> bool:
        """Whether all of them agree."""
        return all(level.agrees for level in self.levels)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"agrees": self.agrees, "levels": [asdict(level) | {"agrees": level.agrees} for level in self.levels]}

    def to_text(self) -> str:
        """For the screen: a line for each level."""
        return "\n".join(
            f"{level.column}{' RANDOM' if level.random else ''} level {level.level}: cosine {level.cosine:.6f} "
            f"(lowest {level.cosine_min:.6f}), error {level.error:.4g}, stated {level.stated:.4g}: "
            f"{'agrees' if level.agrees else 'DIFFERS'}"
            for level in self.levels
        )


def check_live(
    cache: str,
    *,
    teachers: Sequence[str] | None = None,
    samples: int = 16,
    view: int = 0,
    data: str | None = None,
    device: str = "cuda",
) -> LiveReport:
    """Compare up to `samples` samples of every column, spread evenly over it, with its teacher run now.

    `data`: where the images are now, by default where they were indexed. ReplayError where an image's view does not
    have the pixels that were extracted, SakError where a teacher's weights are not the column's.
    """
    device = resolve_device(device)
    selected = select_columns(Cache.open(cache), teachers)
    columns = [column for parts in selected.values() for column in parts if column.present(view).any()]
    if not columns:
        raise CacheError(f"{cache}: nothing of view {view} is there to be checked; extract it")
    return LiveReport(tuple(level for column in columns for level in _check(column, samples, view, data, device)))


def _check(column: Column, count: int, view: int, data: str | None, device: str) -> list[LiveLevel]:
    present = np.flatnonzero(column.present(view))
    chosen = present[np.unique(np.linspace(0, len(present) - 1, min(count, len(present))).round().astype(np.int64))]
    index = column.index if data is None else column.index.relocated(data)
    teacher = build_from_manifest(column.manifest, device)
    codec = column.codec().to(device)
    levels: defaultdict[int, LevelFidelity] = defaultdict(LevelFidelity)
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        pixels = _pixels(column, ImageAccess(index, verify=True), part, view)
        for level, fidelity in _compare(column, codec, teacher, pixels, part, view).items():
            levels[level] += fidelity
    noise = NOISE[column.manifest.document["teacher"]["precision"]]
    return [_level(column, level, fidelity, noise) for level, fidelity in levels.items()]


def _pixels(column: Column, access: ImageAccess, samples: Numbers, view: int) -> torch.Tensor:
    """The views as they were extracted, uint8 (n, H, W, 3), their CRCs proved."""
    height, width = column.manifest.document["views"]["size"]
    stored = StoredViews(column.stored_views(view, samples), view, (height, width))
    images = zip(access.read_many(samples), samples.tolist(), strict=True)
    replayed = [
        replay(decode_rgb(data), stored.view(row), int(stored.crcs[row]), key=access.index.key(sample))
        for row, (data, sample) in enumerate(images)
    ]
    return torch.from_numpy(np.stack(replayed))


def _compare(
    column: Column, codec: ColumnCodec, teacher: Teacher, pixels: torch.Tensor, samples: Numbers, view: int
) -> dict[int, LevelFidelity]:
    calibration = column.calibration()
    if calibration is None:
        raise CacheError(f"{column.location}: blocks without a calibration; see `sak-cli cache verify`")
    device = teacher.mean.device
    features = teacher(to_images(pixels, device))
    read = column.store.read(view, samples, [array.name for array in column.manifest.layout.arrays])
    targets = codec.decode({name: torch.from_numpy(array).to(device) for name, array in read.items()}, codec.levels)
    fidelities = {}
    for level, target in zip(codec.levels, targets, strict=True):
        decoded = target.map if isinstance(target, ProjectedTarget) else target
        fidelities[level] = measure(codec.reduction(features[level]), decoded, calibration.levels[level])
    return fidelities


def _level(column: Column, level: int, live: LevelFidelity, noise: float) -> LiveLevel:
    recorded = [record.fidelity[str(level)] for record in column.records.values() if str(level) in record.fidelity]
    stated = sum(map(LevelFidelity.from_json, recorded), LevelFidelity()).relative_error
    return LiveLevel(
        column=column.id.name,
        random=column.random,
        level=level,
        samples=live.samples,
        cosine=live.cosine,
        cosine_min=live.cosine_min,
        error=live.relative_error,
        stated=stated,
        allowed=SLACK * stated + noise,
    )
