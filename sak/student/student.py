"""The student: stem, adapter paths, aligners, routers and heads put together (the paper's figure 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.features import FeatureMaps, bilinear_resize, tokens_to_map
from sak.student.adapter_path import AdapterPaths
from sak.student.aligner import linear_aligners, output_norms
from sak.student.config import StudentConfig
from sak.student.decoders import Decoded, make_decoder
from sak.student.lora import LORA_KEYS, add_lora
from sak.student.router import Router, draw_noise, mix, noise_shape
from sak.student.stem import Stem, make_stem
from sak.student.swin import SwinPaths
from sak.student.swin_size import SwinSize

Gates = Mapping[int, Mapping[str, Tensor]]
"""Level -> task -> one value per expert: (B, E), with noise per pixel (B, E, H, W)."""


@dataclass(frozen=True)
class StudentOutput:
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
    tasks: dict[str, Tensor]
    fused: dict[str, FeatureMaps]
    preliminary: dict[str, Tensor] = field(default_factory=dict)
    imbalance: Tensor | None = None


class Student(nn.Module):
    """A student with fresh random parts; `build_student` also fills the stem.

    Takes images of exactly `config.image_size`, normalised outside the model with ImageNet's mean and deviation.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        levels = dict(zip(config.tapped, config.level_widths, strict=True))
        teachers = tuple(config.teacher_widths) if config.adapters else ()
        self.stem = make_stem(config.size, config.image_size, gradient_checkpointing=config.gradient_checkpointing)
        self.paths = _make_paths(config, teachers)
        self.norms = output_norms(teachers, levels if teachers else {})
        self.aligners = linear_aligners(config.teacher_widths, levels if config.aligned else {})
        routed = config.tasks if config.fusion == "mor" else {}
        self.routers = nn.ModuleDict(
            {
                str(level): nn.ModuleDict({task: Router(width, len(config.experts)) for task in routed})
                for level, width in (levels if routed else {}).items()
            }
        )
        self.heads = make_decoder(config)
        if config.lora is not None:
            add_lora(self.stem, config.lora)
        self._freeze()

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
        tapped = [stem_tokens[self.stem.index(level)] for level in self.config.tapped]
        path_tokens = self._path_tokens(stem_tokens)
        aligned = self._aligned(path_tokens or dict.fromkeys(self.config.teachers, tapped))
        size = (images.shape[-2], images.shape[-1])
        tas = self._maps(tapped, size)
        paths = {teacher: self._maps(tokens, size) for teacher, tokens in path_tokens.items()}
        needed = tuple(self.config.tasks) if wanted and self.heads.crosses_tasks else wanted
        gates = self._gates(tapped, needed, noise, generator)
        fused = {task: self._fused(task, tas, paths, gates) for task in needed}
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
        levels = self.config.tapped
        stacked = self.paths(stem_tokens, levels)
        return {
            teacher: [self.norms.at(level, teacher, paths[i]) for level, paths in zip(levels, stacked, strict=True)]
            for i, teacher in enumerate(self.paths)
        }

    def _aligned(self, tokens: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        if not self.config.aligned:
            return {teacher: list(per_level) for teacher, per_level in tokens.items()}
        levels = self.config.tapped
        return {
            teacher: [self.aligners.at(level, teacher, x) for level, x in zip(levels, per_level, strict=True)]
            for teacher, per_level in tokens.items()
        }

    def _gates(
        self, tapped: Sequence[Tensor], tasks: Sequence[str], noise: Gates | None, generator: torch.Generator | None
    ) -> dict[int, dict[str, Tensor]]:
        if self.config.fusion != "mor" or not tasks:
            return {}
        gates: dict[int, dict[str, Tensor]] = {}
        for level, tokens in zip(self.config.tapped, tapped, strict=True):
            patches = tokens[:, self.config.size.prefix :].contiguous()
            gates[level] = {
                task: self.routers[str(level)][task](patches, self._noise(patches, level, task, noise, generator))  # type: ignore[index]
                for task in tasks
            }
        return gates

    def _noise(
        self, tokens: Tensor, level: int, task: str, given: Gates | None, generator: torch.Generator | None
    ) -> Tensor | None:
        if not self.training:
            return None
        kind, experts = self.config.gate_noise, len(self.config.experts)
        shape = noise_shape(kind, batch=len(tokens), experts=experts, grid=self.config.grid_at(level))
        if given is None:
            return draw_noise(shape, tokens, generator)
        if level not in given or task not in given[level]:
            raise UsageError(f"no noise for level {level}, {task}; give it for every level and task, or leave it out")
        noise = given[level][task]
        if tuple(noise.shape) != shape:
            raise UsageError(
                f"noise of level {level}, {task} is {tuple(noise.shape)}; gate_noise {kind!r} needs {shape}"
            )
        return noise

    def _fused(self, task: str, tas: FeatureMaps, paths: Mapping[str, FeatureMaps], gates: Gates) -> FeatureMaps:
        """What the task's decoder reads, by level."""
        fused = [self._fuse(task, level, tas, paths, gates) for level in tas.levels]
        return FeatureMaps(tas.levels, tuple(fused))

    def _fuse(self, task: str, level: int, tas: FeatureMaps, paths: Mapping[str, FeatureMaps], gates: Gates) -> Tensor:
        experts = [maps[level] for maps in paths.values()]
        if self.config.fusion == "mor":
            return mix(gates[level][task], [tas[level], *experts])
        if self.config.fusion == "none":
            return tas[level]
        total = experts[0]
        for expert in experts[1:]:
            total = total + expert
        return total

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
        if images.ndim != 4 or images.shape[1] != 3 or not self._takes(images):
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

    def _takes(self, images: Tensor) -> bool:
        if isinstance(self.stem, Stem) and self.stem.any_size:
            return all(side % self.config.size.multiple == 0 for side in images.shape[-2:])
        return tuple(images.shape[-2:]) == self.config.image_size

    def _freeze(self) -> None:
        config = self.config
        if config.freeze == "all-but-routers":
            self.requires_grad_(False)
            self.routers.requires_grad_(True)
        elif config.freeze == "stem" or config.lora is not None:
            for name, parameter in self.stem.named_parameters():
                parameter.requires_grad_(name.endswith(LORA_KEYS))


def _make_paths(config: StudentConfig, teachers: Sequence[str]) -> AdapterPaths | SwinPaths:
    size, again = config.size, config.gradient_checkpointing
    if isinstance(size, SwinSize):
        ratio = config.down_ratio
        return SwinPaths(teachers, size, config.image_size, down_ratio=ratio, gradient_checkpointing=again)
    hidden = size.width // config.down_ratio
    return AdapterPaths(teachers, width=size.width, depth=size.depth, hidden=hidden, gradient_checkpointing=again)
