"""Frozen teachers amalgamated: routers over their live features under heads, an upper bound for a student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sak.errors import UsageError
from sak.features import FeatureMaps, bilinear_resize, map_to_tokens, tokens_to_map
from sak.student.aligner import linear_aligners, output_norms
from sak.student.heads import SimpleHead
from sak.student.router import Gates, Router, draw_noise, mix
from sak.student.sizes import PATCH
from sak.teacher_source import TeacherSource, see
from sak.teachers import Teacher
from sak.variants.probe import Probe, ProbeOutput

Size = tuple[int, int]


@dataclass(frozen=True)
class AmalgamConfig:
    """The teachers in the routers' order, (height, width) of the images, and task -> output channels."""

    sources: tuple[TeacherSource, ...]
    image_size: Size
    tasks: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse fewer than two teachers, or one twice."""
        names = [source.name for source in self.sources]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UsageError(f"an amalgamation needs two teachers or more, each once, got {', '.join(names) or 'none'}")

    def build_teachers(self) -> list[Teacher]:
        """All teachers, on the CPU; their padding never reaches the heads."""
        return [source.build(self.image_size, sam_padding="crop") for source in self.sources]

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return {
            "teachers": [source.to_json() for source in self.sources],
            "image_size": list(self.image_size),
            "tasks": [list(pair) for pair in self.tasks.items()],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AmalgamConfig":
        """The inverse of `to_json`."""
        height, width = value["image_size"]
        sources = tuple(TeacherSource.from_json(source) for source in value["teachers"])
        return cls(sources, (height, width), dict(value["tasks"]))

    def at(self, image_size: Size) -> "AmalgamConfig":
        """The same for images of another size."""
        return replace(self, image_size=image_size)


@dataclass(frozen=True, kw_only=True)
class AmalgamOutput(ProbeOutput):
    """A probe's output (the maps are the first teacher's), and level -> task -> the routers' weights (B, teachers)."""

    gates: dict[int, dict[str, Tensor]]


class Amalgam(Probe):
    """Frozen teachers; per level their maps on one grid, normalised, mixed by a router for each task, under heads.

    The grid is the image's in patches of 16. Maps of teachers of other widths go through a linear aligner to the
    widest. A router reads the mean of the experts' tokens: there is no stem for it to read.
    """

    def __init__(self, config: AmalgamConfig, teachers: Sequence[Teacher]) -> None:
        nn.Module.__init__(self)
        counts = {len(teacher.levels) for teacher in teachers}
        if len(counts) != 1:
            raise UsageError("teachers of an amalgamation are paired by level: name as many levels for each")
        found = tuple(s.identified(t) for s, t in zip(config.sources, teachers, strict=True))
        self.config = replace(config, sources=found)  # type: ignore[assignment]  # a probe of several teachers
        self.teachers = nn.ModuleDict({s.name: t for s, t in zip(found, teachers, strict=True)})
        width, (count,) = max(teacher.width for teacher in teachers), counts
        names, levels = tuple(self.teachers), dict.fromkeys(range(1, count + 1), width)
        widths = {source.name: teacher.width for source, teacher in zip(found, teachers, strict=True)}
        self.norms = nn.ModuleDict(
            {name: output_norms((name,), dict.fromkeys(levels, own)) for name, own in widths.items()}
        )
        other = {name: own for name, own in widths.items() if own != width}
        self.aligners = nn.ModuleDict(
            {name: linear_aligners({name: width}, dict.fromkeys(levels, own)) for name, own in other.items()}
        )
        self.routers = nn.ModuleDict(
            {str(level): nn.ModuleDict({task: Router(width, len(names)) for task in config.tasks}) for level in levels}
        )
        self.heads = nn.ModuleDict(
            {task: SimpleHead(width, count, channels) for task, channels in config.tasks.items()}
        )

    @property
    def experts(self) -> tuple[str, ...]:
        """The routers' experts in the order of the gates: the teachers."""
        return tuple(self.teachers)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels by place, from 1: teachers of different depths are paired by it."""
        return tuple(int(level) for level in self.routers)

    @property
    def learnt(self) -> nn.Module:
        """All but the teachers."""
        return nn.ModuleDict(
            {"norms": self.norms, "aligners": self.aligners, "routers": self.routers, "heads": self.heads}
        )

    def forward(
        self, images: Tensor, *, tasks: Sequence[str] | None = None, noise: Gates | None = None
    ) -> AmalgamOutput:
        """Predictions for `tasks` (None: all) from (B, 3, H, W) images of ImageNet's normalisation.

        In training the routers take the `noise` given, level -> task -> (B, teachers), or draw it anew.
        """
        wanted = self.wanted(tasks)
        size = (images.shape[-2], images.shape[-1])
        experts = dict(enumerate(self._experts(images), start=1))
        gates = {level: self._gates(level, maps, wanted, noise) for level, maps in experts.items()}
        levels = tuple(experts)
        predictions = {}
        for task in wanted:
            fused = FeatureMaps(levels, tuple(mix(gates[level][task], maps) for level, maps in experts.items()))
            predictions[task] = bilinear_resize(self.heads[task](fused), size)
        first = FeatureMaps(levels, tuple(maps[0] for maps in experts.values()))
        return AmalgamOutput(predictions, features=first, gates=gates)

    def _experts(self, images: Tensor) -> list[list[Tensor]]:
        """By level, every teacher's map on the common grid, normalised and of one width."""
        grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        seen = {name: see(teacher, images) for name, teacher in self.teachers.items()}  # type: ignore[arg-type]
        levels = range(1, len(self.routers) + 1)
        return [
            [self._expert(name, level, bilinear_resize(maps.maps[level - 1], grid)) for name, maps in seen.items()]
            for level in levels
        ]

    def _expert(self, name: str, level: int, map_: Tensor) -> Tensor:
        norms: Any = self.norms[name]
        tokens = norms.at(level, name, map_to_tokens(map_))
        if name in self.aligners:
            aligners: Any = self.aligners[name]
            tokens = aligners.at(level, name, tokens)
        return tokens_to_map(tokens, prefix=0, grid=(map_.shape[-2], map_.shape[-1]))

    def _gates(self, level: int, experts: list[Tensor], tasks: Sequence[str], noise: Gates | None) -> dict[str, Tensor]:
        tokens = map_to_tokens(torch.stack(experts).mean(0)).contiguous()
        routers: Any = self.routers[str(level)]
        gates = {}
        for task in tasks:
            given = noise[level][task] if noise is not None else None
            if self.training and given is None:
                given = draw_noise((tokens.shape[0], len(experts)), tokens, None)
            gates[task] = routers[task](tokens, given if self.training else None)
        return gates
