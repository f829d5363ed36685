"""Standardised distillation targets: each teacher's scale, from its column's statistics, kept in a run's directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cache.reader.feature_cache import FeatureCache
from sak.checkpoints.store import write_whole
from sak.errors import SakError, UsageError
from sak.features import FeatureMaps, map_to_tokens
from sak.losses.standardise import Standardisation, channel_standardiser, phi_s
from sak.losses.targets import ProjectedTarget

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
        raise UsageError(f"{reader.columns[0].place.name} has no calibration; extract it again")
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
