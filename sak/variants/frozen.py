"""Frozen teachers under heads: a probe of one (Figure 1, Table 2), or several amalgamated, a student's upper bound.

A probe has the paper's heads on its teacher's raw levels. An amalgamation has routers over its teachers' live features
below the heads, as a student has over its adapter paths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.features import FeatureMaps, bilinear_resize, map_to_tokens, tokens_to_map
from sak.student.aligner import linear_aligners, output_norms
from sak.student.heads import Decoded, SimpleHead
from sak.student.router import Gates, Router, draw_noise, mix
from sak.student.sizes import PATCH
from sak.teachers import Teacher, TeacherRecipe, build_teacher
from sak.teachers.recipe import Size


def _sizes_to_json(image_size: Size, tasks: Mapping[str, int]) -> dict[str, Any]:
    """As JSON; tasks are pairs, because their order is meant."""
    return {"image_size": list(image_size), "tasks": [list(pair) for pair in tasks.items()]}


def _sizes_from_json(value: Mapping[str, Any]) -> tuple[Size, dict[str, int]]:
    height, width = value["image_size"]
    return (height, width), dict(value["tasks"])


@dataclass(frozen=True)
class ProbeConfig:
    """The teacher, (height, width) of the images, and task -> output channels.

    SAM's padding never reaches the heads, whatever the recipe says: their maps must lie on the image.
    """

    teacher: TeacherRecipe
    image_size: Size
    tasks: Mapping[str, int]

    def build_teacher(self) -> Teacher:
        """The backbone, on the CPU; SakError where it is not to be had or is another one."""
        return build_teacher(self.teacher, image_size=self.image_size, sam_padding="crop")

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return {"teacher": self.teacher.to_json(), **_sizes_to_json(self.image_size, self.tasks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProbeConfig":
        """The inverse of `to_json`."""
        return cls(TeacherRecipe.from_json(value["teacher"]), *_sizes_from_json(value))


@dataclass(frozen=True, kw_only=True)
class ProbeOutput(Decoded):
    """Task -> prediction (B, channels, H, W) at the input's size, before any activation; and the teacher's maps."""

    features: FeatureMaps


class Probe(nn.Module):
    """A frozen teacher, in eval mode for ever and without gradients, and a fresh head per task on its raw levels."""

    def __init__(self, config: ProbeConfig, teacher: Teacher) -> None:
        super().__init__()
        self.config = replace(config, teacher=config.teacher.identified(teacher.recipe))
        self.teacher = teacher
        self.heads = nn.ModuleDict(
            {task: SimpleHead(teacher.width, len(teacher.levels), channels) for task, channels in config.tasks.items()}
        )

    @property
    def learnt(self) -> nn.Module:
        """What trains, and what a checkpoint keeps: all but the teacher."""
        return self.heads

    def wanted(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        """The tasks asked for (None: all); UsageError for one that has no head."""
        for task in tasks or ():
            if task not in self.heads:
                raise UsageError(f"the probe has no task {task!r}{nearest(task, self.config.tasks)}")
        return tuple(self.config.tasks) if tasks is None else tuple(tasks)

    def forward(self, images: Tensor, *, tasks: Sequence[str] | None = None) -> ProbeOutput:
        """Predictions for `tasks` (None: all) from (B, 3, H, W) images of ImageNet's normalisation."""
        wanted = self.wanted(tasks)
        features = self.teacher.from_imagenet(images)
        size = (images.shape[-2], images.shape[-1])
        predictions = {task: bilinear_resize(self.heads[task](features), size) for task in wanted}
        return ProbeOutput(predictions, features=features)


@dataclass(frozen=True)
class AmalgamConfig:
    """The teachers in the routers' order, (height, width) of the images, and task -> output channels."""

    recipes: tuple[TeacherRecipe, ...]
    image_size: Size
    tasks: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse fewer than two teachers, or one twice."""
        names = [recipe.name for recipe in self.recipes]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UsageError(f"an amalgamation needs two teachers or more, each once, got {', '.join(names) or 'none'}")

    def build_teachers(self) -> list[Teacher]:
        """All teachers, on the CPU; their padding never reaches the heads."""
        return [build_teacher(recipe, image_size=self.image_size, sam_padding="crop") for recipe in self.recipes]

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        recipes = [recipe.to_json() for recipe in self.recipes]
        return {"teachers": recipes, **_sizes_to_json(self.image_size, self.tasks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AmalgamConfig":
        """The inverse of `to_json`."""
        return cls(tuple(map(TeacherRecipe.from_json, value["teachers"])), *_sizes_from_json(value))


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
        pairs = list(zip(config.recipes, teachers, strict=True))
        recipes = tuple(recipe.identified(teacher.recipe) for recipe, teacher in pairs)
        self.config = replace(config, recipes=recipes)  # type: ignore[assignment]  # a probe of several teachers
        self.teachers = nn.ModuleDict({recipe.name: teacher for recipe, teacher in pairs})
        widths = {recipe.name: teacher.width for recipe, teacher in pairs}
        width, (count,) = max(widths.values()), counts
        levels = dict.fromkeys(range(1, count + 1), width)
        self.norms = nn.ModuleDict(
            {name: output_norms((name,), dict.fromkeys(levels, own)) for name, own in widths.items()}
        )
        self.aligners = nn.ModuleDict(
            {
                name: linear_aligners({name: width}, dict.fromkeys(levels, own))
                for name, own in widths.items()
                if own != width
            }
        )
        self.routers = nn.ModuleDict(
            {str(level): nn.ModuleDict({task: Router(width, len(pairs)) for task in config.tasks}) for level in levels}
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
        """The levels by position, from 1: teachers of different depths are paired by it."""
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
        features = {name: teacher.from_imagenet(images) for name, teacher in self.teachers.items()}  # type: ignore[operator]
        return [
            [self._expert(name, level, bilinear_resize(maps.maps[level - 1], grid)) for name, maps in features.items()]
            for level in self.levels
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
        shape, gates = (tokens.shape[0], len(experts)), {}
        for task in tasks:
            given = None
            if self.training:
                given = draw_noise(shape, tokens, None) if noise is None else noise[level][task]
            gates[task] = routers[task](tokens, given)
        return gates
