"""Probes: a frozen teacher as the backbone under the paper's heads (Figure 1 and Table 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.features import FeatureMaps, bilinear_resize
from sak.student.heads import Decoded, SimpleHead
from sak.teachers import Teacher, TeacherRecipe, build_teacher

Size = tuple[int, int]


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
        """A JSON value; tasks are pairs, because their order is meant."""
        return {
            "teacher": self.teacher.to_json(),
            "image_size": list(self.image_size),
            "tasks": [list(pair) for pair in self.tasks.items()],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProbeConfig":
        """The inverse of `to_json`."""
        height, width = value["image_size"]
        return cls(TeacherRecipe.from_json(value["teacher"]), (height, width), dict(value["tasks"]))

    def at(self, image_size: Size) -> "ProbeConfig":
        """The same probe for images of another size."""
        return replace(self, image_size=image_size)


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
