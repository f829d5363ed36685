"""Pictures of a run: feature maps of teachers and student as colours, and the predictions that evaluation drew.

A map's colours are the first three principal components of the teacher's map, and the student's in the same ones. Each
is centred and stretched to its own range: a young student has the shape of a map long before its strength, and its
colours would all be alike otherwise. The cosine says how like the maps are as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.data.distillation import join
from pipeline.data.loading import ViewDataset, WantedViews
from pipeline.report.charts import PNG, data_url
from pipeline.report.runs import ReportedRun, one_line
from sak.checkpoints.store import load_student
from sak.errors import SakError
from sak.features import bilinear_resize
from sak.losses.projection import ProjectedTarget

SIDE, COMPONENTS = 132, 3  # pixels of a picture; principal components
IMAGES, RUNS = 2, 3
LARGEST_PICTURE = 8 << 20


@dataclass(frozen=True)
class PicturePair:
    """A teacher's map and the student's as addresses of pictures, and the cosine of the maps."""

    teacher: str
    student: str
    cosine: float


@dataclass(frozen=True)
class MappedImage:
    """An image (the address of its picture) with teacher -> level -> maps."""

    key: str
    picture: str
    maps: dict[str, dict[int, PicturePair]]


def feature_maps(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Of the first distilled runs: images with their maps, or why there are none."""
    distilled = [run for run in runs if run.stage == "distill"]
    drawn = []
    for run in distilled[:RUNS]:
        try:
            drawn.append({"run": run, "images": mapped_images(run, IMAGES)})
        except (SakError, OSError, KeyError, ValueError) as error:
            drawn.append({"run": run, "problem": one_line(error)})
    return {"drawn": drawn, "count": len(distilled)}


@torch.no_grad()
def mapped_images(run: ReportedRun, count: int) -> list[MappedImage]:
    """The first images of a distillation's held-out cache, else of its own; SakError where either is not at hand."""
    checkpoints = run.directory / "checkpoints"
    student = load_student(checkpoints / ("best" if (checkpoints / "best").exists() else "last")).eval()
    names = list(student.config.teachers)
    levels = run.reads.get("levels")
    wanted = levels if isinstance(levels, dict) and set(levels) == set(names) else None
    held_out = run.config.get("val_cache")
    path, columns = (held_out, names) if held_out else (run.reads.get("cache"), run.columns or names)
    cache = FeatureCache.open(str(path), columns, wanted, allow_partial=True, views=1)
    samples = cache.samples_in(0)[:count]
    images = ViewDataset(cache.sample_table, cache.view_policy).load(WantedViews(samples.tolist(), 0, 0))
    batch = join(images, cache.read(samples, 0), torch.device("cpu"))
    answers = student(batch.inputs, tasks=()).teachers
    mapped = [
        MappedImage(str(key), _picture(pixels.permute(1, 2, 0).numpy(), Image.Resampling.BICUBIC), {})
        for key, pixels in zip(batch.keys, batch.images, strict=True)
    ]
    for name in names:
        targets = batch.targets[name]
        for level, target, answer in zip(targets.levels, targets, answers[name], strict=False):
            teacher = target.map if isinstance(target, ProjectedTarget) else target
            for image, teacher_map, student_map in zip(mapped, teacher, answer, strict=True):
                image.maps.setdefault(name, {})[level] = _pair(teacher_map, student_map)
    return mapped


def _pair(teacher: Tensor, student: Tensor) -> PicturePair:
    """Both (C, h, w) on the teacher's grid, in the components of the teacher's."""
    height, width = teacher.shape[-2:]
    if student.shape != teacher.shape:
        student = bilinear_resize(student[None], (height, width))[0]
    cosine = float(torch.nn.functional.cosine_similarity(teacher.flatten(), student.flatten(), dim=0))
    both = torch.stack([teacher, student]).double().flatten(2)
    deviation = both[0].std(1, keepdim=True).clamp_min(1e-12)
    tokens = ((both - both.mean(2, keepdim=True)) / deviation).permute(0, 2, 1)
    _, _, directions = torch.linalg.svd(tokens[0], full_matrices=False)
    components = (tokens @ directions[:COMPONENTS].T).numpy().reshape(2, height, width, -1)
    return PicturePair(_coloured(components[0]), _coloured(components[1]), cosine)


def _coloured(components: NDArray[np.float64]) -> str:
    """(h, w, components) as colours; components that a narrow teacher lacks are black."""
    low, high = np.percentile(components, (2, 98), axis=(0, 1))
    shares = np.clip((components - low) / np.maximum(high - low, 1e-9), 0, 1)
    filled = np.pad(shares, ((0, 0), (0, 0), (0, COMPONENTS - shares.shape[2])))
    return _picture((filled * 255).round().astype(np.uint8), Image.Resampling.NEAREST)


def _picture(pixels: NDArray[np.uint8], how: Image.Resampling) -> str:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), how).save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue())


def predictions(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """By run: the panel that evaluation drew, as the address of a picture."""
    panels = {}
    for run in runs:
        path = run.directory / "figures" / "predictions.png"
        if path.is_file() and path.stat().st_size <= LARGEST_PICTURE and (data := path.read_bytes()).startswith(PNG):
            panels[run.name] = data_url(data)
    return panels
