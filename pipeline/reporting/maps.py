"""Feature maps as colours: the first three principal components of a teacher's map, and the student's in the same ones.

Each map is centred and stretched to its own range: a young student has the shape of a map long before its strength, and
its colours would all be alike otherwise. The cosine says how like the maps are as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.cache.cache import FeatureCache
from pipeline.data.distill_batch import join
from pipeline.data.view_images import ViewDataset, Wanted
from pipeline.reporting.runs import ReportedRun
from sak.checkpoints.store import load_student
from sak.features import bilinear_resize
from sak.losses.targets import ProjectedTarget, Target

SIDE = 132
_COMPONENTS = 3


@dataclass(frozen=True)
class MapPictures:
    """One image (PNG), and teacher -> level -> (teacher's map, student's map, their cosine)."""

    key: str
    image: bytes
    maps: dict[str, dict[int, tuple[bytes, bytes, float]]]


@torch.no_grad()
def map_pictures(run: ReportedRun, count: int) -> list[MapPictures]:
    """The first images of a distillation's held-out cache, else of its own; SakError where either is not at hand."""
    student = load_student(_checkpoint(run.place)).eval()
    names = list(student.config.teachers)
    levels = run.reads.get("levels")
    wanted = levels if isinstance(levels, dict) and set(levels) == set(names) else None
    held_out = run.config.get("val_cache")
    columns = [str(each).split("/")[1] for each in run.reads.get("columns", ()) if str(each).count("/")]
    place, named = (held_out, names) if held_out else (run.reads.get("cache"), columns or names)
    cache = FeatureCache.open(str(place), named, wanted, allow_partial=True, views=1)
    samples = cache.samples_in(0)[:count]
    dataset = ViewDataset(cache.universe, cache.view_policy)
    images = dataset.load(Wanted(samples.tolist(), 0, 0))
    batch = join(images, cache.read(samples, 0), torch.device("cpu"))
    answers = student(batch.inputs, tasks=()).teachers
    found = []
    for row in range(len(samples)):
        maps: dict[str, dict[int, tuple[bytes, bytes, float]]] = {}
        for name in names:
            targets = batch.targets[name]
            for level, target, answer in zip(targets.levels, targets, answers[name], strict=False):
                teacher, mine = _map(target)[row], answer[row]
                maps.setdefault(name, {})[level] = _pair(teacher, mine)
        pixels = batch.images[row].permute(1, 2, 0).numpy()
        found.append(MapPictures(str(batch.keys[row]), _png(pixels, Image.Resampling.BICUBIC), maps))
    return found


def _checkpoint(run: Path) -> Path:
    best = run / "checkpoints" / "best"
    return best if best.exists() else run / "checkpoints" / "last"


def _map(target: Target) -> Tensor:
    return target.map if isinstance(target, ProjectedTarget) else target


def _pair(teacher: Tensor, student: Tensor) -> tuple[bytes, bytes, float]:
    """Both (C, h, w) on the teacher's grid, in the components of both together; and their map cosine."""
    if student.shape != teacher.shape:
        student = bilinear_resize(student[None], (teacher.shape[-2], teacher.shape[-1]))[0]
    cosine = float(torch.nn.functional.cosine_similarity(teacher.flatten(), student.flatten(), dim=0))
    both = torch.stack([teacher, student]).double().flatten(2)
    deviation = both[0].std(1, keepdim=True).clamp_min(1e-12)
    tokens = ((both - both.mean(2, keepdim=True)) / deviation).permute(0, 2, 1)
    _, _, directions = torch.linalg.svd(tokens[0], full_matrices=False)
    components = (tokens @ directions[:_COMPONENTS].T).numpy()
    shape = (teacher.shape[-2], teacher.shape[-1])
    return _coloured(components[0], shape), _coloured(components[1], shape), cosine


def _coloured(components: NDArray[np.float64], shape: Sequence[int]) -> bytes:
    """(tokens, components) as colours; components that a narrow teacher lacks are black."""
    low, high = np.percentile(components, (2, 98), axis=0)
    shares = np.clip((components - low) / np.maximum(high - low, 1e-9), 0, 1)
    filled = np.zeros((shares.shape[0], _COMPONENTS))
    filled[:, : shares.shape[1]] = shares
    return _png((filled.reshape(*shape, _COMPONENTS) * 255).round().astype(np.uint8), Image.Resampling.NEAREST)


def _png(pixels: NDArray[np.uint8], how: Image.Resampling) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), how).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
