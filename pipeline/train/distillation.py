"""What distillation and fine-tuning share: recipes of student and loss, and standardised targets.

Standardised targets take each teacher's scale from the statistics of its column; a run keeps them in its directory.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.settings import Frozen
from sak.checkpoints.store import write_whole
from sak.errors import SakError, UsageError, nearest
from sak.features import FeatureMaps, default_levels, map_to_tokens
from sak.losses.distillation import DistillationLoss
from sak.losses.projection import ProjectedTarget
from sak.losses.standardise import Standardisation, channel_standardiser, phi_s
from sak.student.config import StudentConfig, size_from_json
from sak.student.sizes import stem_size

Standardise = Literal["none", "mean-var", "phi-s"]
Scales = Mapping[str, tuple[Standardisation, ...]]
"""Teacher -> a standardiser a level; a teacher that is not there has raw targets."""

FILE = "standardise.safetensors"
SAMPLES = 256
BATCH = 16


def standardisers(kind: Standardise, cache: FeatureCache, names: Sequence[str], device: torch.device) -> Scales:
    """Teacher -> one standardiser a level, on the device; none for `none`.

    `mean-var` takes mean and variance of every channel from the column's calibration. `phi-s` needs the channels'
    covariance, which a calibration does not keep: it is taken from the stored features of view 0 of the first `SAMPLES`
    samples of the cache, so every rank finds the same. UsageError for a teacher that the cache does not hold.
    """
    if kind == "none":
        return {}
    for name in names:
        if name not in cache.readers:
            raise UsageError(
                f"loss.standardise {kind}: {name} has no column here, its statistics come from the cache; extract "
                "it, or train on raw targets (none)"
            )
    by_level = _isotropic(cache, names) if kind == "phi-s" else {name: _by_channel(cache, name) for name in names}
    return {name: tuple(standardiser.to(device) for standardiser in levels) for name, levels in by_level.items()}


def _by_channel(cache: FeatureCache, name: str) -> list[Standardisation]:
    """Channels that hardly vary are divided by the calibration's smallest scale, not by noise."""
    if cache.teachers[name].reduction == "projection":
        raise UsageError(
            f"loss.standardise mean-var: {name} is cached as a projection, whose left-over is one number for all "
            "channels; take phi-s, or extract it on its native grid"
        )
    reader = cache.readers[name]
    calibration = reader.columns[0].calibration()
    if calibration is None:
        raise UsageError(f"{reader.columns[0].id.name} has no calibration; extract it again")
    statistics = [calibration.levels[level] for level in reader.levels]
    return [channel_standardiser(level.mean, level.scale.square()) for level in statistics]


def _isotropic(cache: FeatureCache, names: Sequence[str]) -> dict[str, list[Standardisation]]:
    moments: dict[str, list[_Moments]] = {name: [_Moments() for _ in cache.readers[name].levels] for name in names}
    samples = cache.samples_in(0)[:SAMPLES]
    for start in range(0, len(samples), BATCH):
        targets = cache.read(samples[start : start + BATCH]).decode()
        for name in names:
            for moment, target in zip(moments[name], targets[name], strict=True):
                moment.update(target.map if isinstance(target, ProjectedTarget) else target)
    return {name: [phi_s(*moment.finish()) for moment in levels] for name, levels in moments.items()}


class _Moments:
    """Mean and covariance of channels, float64, shifted by the first batch's mean."""

    def __init__(self) -> None:
        self._count = 0

    def update(self, map_: Tensor) -> None:
        """Add (B, C, H, W)."""
        tokens = map_to_tokens(map_).flatten(0, 1).double().cpu()
        if self._count == 0:
            self._shift = tokens.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._squares = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64)
        centred = tokens - self._shift
        self._sum += centred.sum(0)
        self._squares += centred.T @ centred
        self._count += len(tokens)

    def finish(self) -> tuple[Tensor, Tensor]:
        """(mean, covariance)."""
        offset = self._sum / self._count
        return self._shift + offset, self._squares / self._count - torch.outer(offset, offset)


def save_standardisers(scales: Scales, run: Path) -> None:
    """Keep them, where there are any, in a run's directory: fine-tuning goes on towards the same targets."""
    tensors = {
        f"{name}.{position}.{part}": tensor.cpu().contiguous()
        for name, levels in scales.items()
        for position, standardiser in enumerate(levels)
        for part, tensor in vars(standardiser).items()
        if tensor is not None
    }
    if tensors:
        write_whole(run / FILE, lambda scratch: save_file(tensors, scratch))


def load_standardisers(run: Path, device: torch.device) -> Scales:
    """What `save_standardisers` kept in a run's directory; none where it kept nothing, SakError for a damaged file."""
    if not (run / FILE).is_file():
        return {}
    try:
        tensors = load_file(run / FILE, device=str(device))
    except SafetensorError as error:
        raise SakError(f"{run / FILE} is damaged ({error}); distil again, or --no-distill") from error
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, position, part = key.rsplit(".", 2)
        parts.setdefault(name, {}).setdefault(int(position), {})[part] = tensor
    return {
        name: tuple(Standardisation(**levels[position]) for position in sorted(levels))
        for name, levels in parts.items()
    }


def own_units(answers: FeatureMaps, scales: Sequence[Standardisation] | None) -> FeatureMaps:
    """Answers to standardised targets as the teacher would say them; the answers themselves without `scales`."""
    if scales is None:
        return answers
    maps = tuple(scale.invert(map_) for scale, map_ in zip(scales, answers, strict=True))
    return FeatureMaps(answers.levels, maps)


class StudentRecipe(Frozen):
    """The student; teachers, their widths and the image size come from the cache.

    `stem` is a timm ViT or Swin, or a size (`width`, `depth`, `heads`; a Swin's `embed`, `depths`, `heads`, `window`),
    `weights` where it starts from: `pretrained`, a file or `random:SEED`. `adapters: false` is the many-to-one student,
    which has linear aligners alone. `aligners` are a linear map per teacher and level behind the paths; null: where a
    teacher's width is another, as in the paper.
    """

    stem: str | dict[str, int | bool | tuple[int, ...]] = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    weights: str = "pretrained"
    adapters: bool = True
    down_ratio: int = Field(default=4, ge=1)
    aligners: bool | None = None
    freeze: Literal["none", "stem"] = "none"
    gradient_checkpointing: bool = False


class LossRecipe(Frozen):
    """The distillation loss; `weights` by teacher, 1 where not named."""

    kind: Literal["cos+l1", "cos", "l2"] = "cos+l1"
    cosine: Literal["map", "token"] = "map"
    cosine_weight: float = Field(default=0.9, ge=0)
    l1_weight: float = Field(default=0.1, ge=0)
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossRecipe":
        if self.kind == "cos+l1" and self.cosine_weight == self.l1_weight == 0:
            raise ValueError("cosine_weight and l1_weight are both 0: nothing would be learnt")
        return self

    def make(self, scales: Scales) -> DistillationLoss:
        """The loss, without the factor and options that a stage's own recipe adds; `scales` standardise the targets."""
        return DistillationLoss(**self.model_dump(include=set(LossRecipe.model_fields)), standardisers=scales)

    def check_teachers(self, names: Collection[str]) -> None:
        """UsageError for a weight of a teacher that is not among those distilled, or where all of them weigh 0."""
        for name in self.weights:
            if name not in names:
                raise UsageError(f"loss weights: {name!r} is no teacher of this run{nearest(name, names)}")
        if names and all(self.weights.get(name, 1.0) == 0 for name in names):
            raise UsageError("loss weights: every teacher's is 0, nothing would be learnt; leave one out")


@dataclass(frozen=True)
class TeacherLevels:
    """What the student must know of a teacher: its width, all levels that it has, and those wanted of them."""

    width: int
    levels: tuple[int, ...]
    wanted: tuple[int, ...]


def student_config(
    recipe: StudentRecipe, teachers: Mapping[str, TeacherLevels], image_size: tuple[int, int]
) -> StudentConfig:
    """The student that answers to these teachers.

    Levels are paired by position: the third of an L teacher's four (block 18) is the third of a B student's (block 9).
    """
    stem = size_from_json(recipe.stem) if isinstance(recipe.stem, dict) else recipe.stem
    depth = stem_size(stem).depth
    return StudentConfig(
        image_size=image_size,
        stem=stem,
        weights=recipe.weights,
        teachers={name: teacher.width for name, teacher in teachers.items()},
        levels=_paired_levels(teachers, depth),
        adapters=recipe.adapters,
        aligners=True if recipe.aligners is None and not recipe.adapters else recipe.aligners,
        fusion="mor" if recipe.adapters else "none",
        down_ratio=recipe.down_ratio,
        freeze=recipe.freeze,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def _paired_levels(teachers: Mapping[str, TeacherLevels], depth: int) -> tuple[int, ...]:
    positions = {
        name: (len(teacher.levels), tuple(teacher.levels.index(level) for level in teacher.wanted))
        for name, teacher in teachers.items()
    }
    first, (count, chosen) = next(iter(positions.items()))
    for name, teacher in teachers.items():
        if positions[name] != (count, chosen):
            raise UsageError(
                f"{name} is wanted at levels {teacher.wanted} of {teacher.levels}, {first} at "
                f"{teachers[first].wanted} of {teachers[first].levels}: they are paired by position, name --levels"
            )
    if count > depth:
        raise UsageError(f"the teachers have {count} levels, a student of {depth} blocks has not as many")
    own = default_levels(depth) if count == 4 else tuple(depth * (index + 1) // count for index in range(count))
    return tuple(own[position] for position in chosen)
