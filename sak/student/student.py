"""The student: stem, adapter paths, aligners, routers and heads put together (the paper's figure 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.features import FeatureMaps, bilinear_resize, tokens_to_map
from sak.student.adapter_path import AdapterPaths
from sak.student.aligner import PerLevel
from sak.student.config import StudentConfig
from sak.student.heads import Decoded, Decoder
from sak.student.router import Gates, StemAlone
from sak.student.stem import Stem
from sak.variants.swin import SwinPaths, SwinStem


@dataclass(frozen=True, kw_only=True)
class StudentOutput(Decoded):
    """All that a student says about images; what it has no parts for is empty.

    Attributes:
        tas: the stem's maps at the levels, un-normalised, without class token: the routers' first expert.
        paths: teacher -> the adapter path's maps after the output norm, in the student's width: the other experts.
        teachers: teacher -> the maps for the distillation loss: `paths` through the aligners, where there are any.
        gates: level -> task -> the routers' weights over TAS and the teachers, summing to one; see `Gates`.
        tasks: task -> prediction (B, channels, H, W) at the input's size, before any activation.
        fused: task -> what its decoder reads: TAS and the paths mixed by the gates, by level.
        preliminary: in training, the decoder's earlier guesses as `tasks`, where it has any (InvPT).
        imbalance: in training, how unevenly the decoder's experts are used, a scalar (MLoRE); else None.
    """

    tas: FeatureMaps
    paths: dict[str, FeatureMaps]
    teachers: dict[str, FeatureMaps]
    gates: dict[int, dict[str, Tensor]]
    fused: dict[str, FeatureMaps]


class Student(nn.Module):
    """A student put together from its parts, which `sak.student.build` makes from the configuration.

    Takes images of exactly `config.image_size`, normalised outside the model with ImageNet's mean and deviation.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        stem: Stem | SwinStem,
        paths: AdapterPaths | SwinPaths,
        norms: PerLevel,
        aligners: PerLevel,
        routers: StemAlone,
        heads: Decoder,
    ) -> None:
        super().__init__()
        self.config = config
        self.stem, self.paths, self.norms, self.aligners = stem, paths, norms, aligners
        self.routers, self.heads = routers, heads

    def forward(
        self,
        images: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        noise: Gates | None = None,
        generator: torch.Generator | None = None,
    ) -> StudentOutput:
        """What the student sees in (B, 3, H, W) images and predicts for `tasks` (None: all it has, (): none).

        In training the routers draw noise anew for each level and task, level by level, from `generator` where one is
        given, or take the `noise` given; in evaluation there is none and giving it is an error.
        """
        wanted = self._check(images, tasks, noise)
        stem_tokens = self.stem(images)
        tapped = {level: stem_tokens[self.stem.index(level)] for level in self.config.tapped}
        path_tokens = self._path_tokens(stem_tokens)
        aligned = self.aligners(path_tokens or {teacher: list(tapped.values()) for teacher in self.config.teachers})
        size = (images.shape[-2], images.shape[-1])
        tas = self._maps(list(tapped.values()), size)
        paths = {teacher: self._maps(tokens, size) for teacher, tokens in path_tokens.items()}
        needed = tuple(self.config.tasks) if wanted and self.heads.crosses_tasks else wanted
        gates = self.routers.gates(tapped, needed, noise, generator)
        fused = {task: self._fused(task, tas, list(paths.values()), gates) for task in needed}
        decoded = self.heads(fused) if fused else Decoded({})
        return StudentOutput(
            tas=tas,
            paths=paths,
            teachers={teacher: self._maps(tokens, size) for teacher, tokens in aligned.items()},
            gates={level: {task: per_task[task] for task in wanted} for level, per_task in gates.items()},
            tasks={task: bilinear_resize(decoded.tasks[task], size) for task in wanted},
            fused={task: fused[task] for task in wanted},
            preliminary={
                task: bilinear_resize(decoded.preliminary[task], size) for task in wanted if task in decoded.preliminary
            },
            imbalance=decoded.imbalance,
        )

    def train(self, mode: bool = True) -> "Student":
        """As `nn.Module.train`, except that frozen heads keep their running statistics: they stay in eval mode."""
        super().train(mode)
        if self.config.freeze == "all-but-routers":
            self.heads.eval()
        return self

    def _path_tokens(self, stem_tokens: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Teacher -> normalised path tokens (B, 1+n, C) at the levels; the class token is dropped with the map."""
        if not self.paths:
            return {}
        stacked = self.paths(stem_tokens, self.config.tapped)
        return self.norms({teacher: [paths[i] for paths in stacked] for i, teacher in enumerate(self.paths)})

    def _fused(self, task: str, tas: FeatureMaps, paths: Sequence[FeatureMaps], gates: Gates) -> FeatureMaps:
        """What the task's decoder reads, by level."""
        fused = [
            self.routers.fuse(gates.get(level, {}), task, tas[level], [maps[level] for maps in paths])
            for level in tas.levels
        ]
        return FeatureMaps(tas.levels, tuple(fused))

    def _maps(self, tokens: Sequence[Tensor], image_size: tuple[int, int]) -> FeatureMaps:
        size, levels = self.config.size, self.config.tapped
        strides = [size.stride_at(level) for level in levels]
        maps = [
            tokens_to_map(x, prefix=size.prefix, grid=(image_size[0] // stride, image_size[1] // stride))
            for x, stride in zip(tokens, strides, strict=True)
        ]
        return FeatureMaps(levels, tuple(maps))

    def _check(self, images: Tensor, tasks: Sequence[str] | None, noise: Gates | None) -> tuple[str, ...]:
        """The tasks wanted, in the order asked for."""
        if images.ndim != 4 or images.shape[1] != 3 or not self.stem.takes((images.shape[-2], images.shape[-1])):
            height, width = self.config.image_size
            raise UsageError(
                f"the student takes (B, 3, {height}, {width}) images, got {tuple(images.shape)}; resize them, or load "
                "the student with another image_size"
            )
        if not images.is_floating_point():
            raise UsageError(f"the student takes normalised float images, got {images.dtype}")
        if noise is not None and not self.training:
            raise UsageError("routers have no noise in evaluation: leave noise out, or call train() first")
        for task in tasks or ():
            if task not in self.config.tasks:
                raise UsageError(f"the student has no task {task!r}{nearest(task, self.config.tasks)}")
        return tuple(self.config.tasks if tasks is None else tasks)
