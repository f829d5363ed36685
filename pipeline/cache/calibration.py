"""Channel statistics and principal components of one teacher, from samples that every worker picks alike.

A calibration job runs before any block: view 0 of `calibration_samples`, in that order, reduced to the stored grid.
Sums are float64 and made sample by sample, one after another, so the batches in which maps arrive do not matter to
them (a teacher's own products may still differ in the last bit between batch sizes).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from heapq import nsmallest

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sak.errors import SakError
from sak.features import FeatureMaps, map_to_tokens

NOT_FINITE = "features are not finite; run this teacher in another precision, or leave the image out"
_LEAST_SHARE = 1e-6


class CalibrationError(SakError):
    """Statistics that are missing, damaged, or of another calibration than what they should read."""


@dataclass(frozen=True)
class LevelStatistics:
    """One level's channels: `mean`, `std` (C,), and with PCA `basis` (C, k), `variance` (k,); float64, on the CPU.

    `basis` holds the leading eigenvectors of the channels' correlations, that is of standardised features, in columns
    of falling `variance`; each column's largest entry is positive. PCA of raw features would keep little but the few
    huge channels.
    """

    mean: Tensor
    std: Tensor
    basis: Tensor | None = None
    variance: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """What channels are divided by: `std`, but never so small that rounding noise would be blown up."""
        floor = _LEAST_SHARE * torch.maximum(self.mean.abs(), self.std.square().mean().sqrt())
        scale = torch.maximum(self.std, floor)
        return torch.where(scale > 0, scale, torch.ones_like(scale))


@dataclass(frozen=True)
class Calibration:
    """The statistics of all levels of one teacher; `samples` is how many they were made from."""

    levels: dict[int, LevelStatistics]
    samples: int

    def to_bytes(self) -> bytes:
        """As safetensors: `l<level>.mean`, `.std`, `.basis`, `.variance`, `samples`; equal statistics, equal bytes."""
        tensors = {"samples": torch.tensor(self.samples)}
        for level, statistics in self.levels.items():
            for name in ("mean", "std", "basis", "variance"):
                tensor = getattr(statistics, name)
                if tensor is not None:
                    tensors[f"l{level}.{name}"] = tensor.double().contiguous()
        return save(tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`; every block records it, and blocks of different digests are never mixed."""
        return sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, *, digest: str | None = None, source: str = "calibration") -> "Calibration":
        """Read what `to_bytes` made; CalibrationError where `data` is damaged or does not have `digest`."""
        if digest is not None and (actual := sha256(data).hexdigest()) != digest:
            raise CalibrationError(
                f"{source}: digest {actual[:12]}, but blocks were made with {digest[:12]}; "
                "restore that file, or extract the column again"
            )
        try:
            tensors = load(data)
            levels = sorted({int(name.partition(".")[0][1:]) for name in tensors if name != "samples"})
            statistics = {level: _level(tensors, level) for level in levels}
            return cls(statistics, int(tensors["samples"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise CalibrationError(f"{source}: not a calibration file, or damaged ({error}); extract again") from error


def _level(tensors: dict[str, Tensor], level: int) -> LevelStatistics:
    names = (f"l{level}.basis", f"l{level}.variance")
    return LevelStatistics(tensors[f"l{level}.mean"], tensors[f"l{level}.std"], *(tensors.get(name) for name in names))


def batch_sample(samples: Sequence[str], number: int) -> str:
    """What errors call a sample of a batch: by its key where `samples` has it."""
    return f"sample {samples[number]!r}" if len(samples) > number else f"number {number} of the batch"


def calibration_samples(keys: Iterable[str], count: int, seed: int) -> tuple[int, ...]:
    """The positions, increasing, of the `count` keys with the smallest SHA-256 of (seed, key); all if there are fewer.

    `keys` are those of the whole index, never of the part that one run extracts, so that a partial column and the
    whole one share their statistics. A second or two for 1.28 million keys.
    """
    prefix = f"sak calibration 1 {seed} ".encode()
    digests = ((sha256(prefix + key.encode()).digest(), position) for position, key in enumerate(keys))
    return tuple(sorted(position for _, position in nsmallest(count, digests)))


class Calibrator:
    """Collects the maps of one `teacher` (its name, for errors); `pca` components are found where given."""

    def __init__(self, levels: tuple[int, ...], pca: int | None = None, *, teacher: str = "") -> None:
        self._teacher = f"teacher {teacher}, " if teacher else ""
        self._moments = {level: _Moments(covariance=pca is not None) for level in levels}
        self._pca = pca
        self._samples = 0

    def update(self, features: FeatureMaps, samples: Sequence[str] = ()) -> None:
        """Add a batch of maps (B, C, H, W), already reduced to the stored grid, in the order of the samples.

        CalibrationError names teacher, level and sample (`samples` are the batch's keys) where one is not finite.
        """
        for level, moments in self._moments.items():
            finite = features[level].flatten(1).isfinite().all(1)
            if not bool(finite.all()):
                where = f"{self._teacher}level {level}, {batch_sample(samples, int((~finite).nonzero()[0]))}"
                raise CalibrationError(f"{where}: {NOT_FINITE}")
            moments.update(map_to_tokens(features[level]))
        self._samples += features.maps[0].shape[0]

    def finish(self) -> Calibration:
        """The statistics of all that was added; CalibrationError where that was nothing."""
        if self._samples == 0:
            raise CalibrationError("calibration saw no sample; give data that holds at least one readable image")
        return Calibration(
            {level: moments.statistics(self._pca) for level, moments in self._moments.items()}, self._samples
        )


class _Moments:
    """Float64 sums of tokens, shifted by the first sample's mean so that huge means cost no digits."""

    def __init__(self, *, covariance: bool) -> None:
        self._covariance = covariance
        self._count = 0

    def update(self, tokens: Tensor) -> None:
        """Add (B, N, C), one sample after another."""
        for sample in tokens.double():
            if self._count == 0:
                self._shift = sample.mean(0)
                self._sum = torch.zeros_like(self._shift)
                self._squares = torch.zeros_like(self._shift.diag() if self._covariance else self._shift)
            centred = sample - self._shift
            self._sum += centred.sum(0)
            self._squares += centred.T @ centred if self._covariance else centred.square().sum(0)
            self._count += sample.shape[0]

    def statistics(self, pca: int | None) -> LevelStatistics:
        """Mean, standard deviation (of the population) and principal components."""
        offset = self._sum / self._count
        mean = (self._shift + offset).cpu()
        if pca is None:
            return LevelStatistics(mean, (self._squares / self._count - offset.square()).clamp(min=0).sqrt().cpu())
        covariance = (self._squares / self._count - torch.outer(offset, offset)).cpu()
        plain = LevelStatistics(mean, covariance.diagonal().clamp(min=0).sqrt())
        return _with_components(plain, covariance, pca)


def _with_components(plain: LevelStatistics, covariance: Tensor, count: int) -> LevelStatistics:
    """`plain` with the leading `count` eigenvectors of the correlation matrix."""
    scale = plain.scale
    variance, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
    basis = vectors.flip(1)[:, :count]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return LevelStatistics(
        plain.mean, plain.std, (basis * largest.sign()).contiguous(), variance.flip(0)[:count].clamp(min=0).contiguous()
    )
