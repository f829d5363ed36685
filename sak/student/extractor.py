"""The student as a feature extractor in timm's manner, and as one plain function for exports."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sak.errors import UsageError, nearest
from sak.features import FeatureMaps
from sak.student.config import STEM_EXPERT
from sak.student.student import Student, StudentOutput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Outputs = Literal["predictions", "features", "task-features"]
OUTPUTS: tuple[Outputs, ...] = ("predictions", "features", "task-features")


class FeatureExtractor(nn.Module):
    """One of a student's kinds of features, with the attributes and methods that timm's models have.

    `source` is `TAS` (the stem, un-normalised), a teacher (its path after the output norm) or a task (what its decoder
    reads: the gates' mixture). Images (B, 3, H, W) are normalised outside, see `pretrained_cfg`.
    """

    def __init__(self, student: Student, source: str = STEM_EXPERT) -> None:
        super().__init__()
        config = student.config
        known = (STEM_EXPERT, *student.paths, *config.tasks)
        if source not in known:
            raise UsageError(f"the student has no features {source!r}{nearest(source, known)}")
        self.student, self.source = student, source
        self.num_features = config.level_widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": config.size.stride_at(level), "module": f"level{level}"}
            for level, width in zip(config.tapped, config.level_widths, strict=True)
        ]
        self.pretrained_cfg = {"input_size": (3, *config.image_size), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}

    def forward(self, images: Tensor) -> list[Tensor]:
        """All levels, shallowest first, as timm's `features_only` models give them."""
        return list(self._features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last level, (B, C, H, W)."""
        return self._features(images).maps[-1]

    def forward_intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None = None, *, intermediates_only: bool = True
    ) -> Any:
        """The levels at `indices` (positions; an int: the last so many); with the last level before them unless only.

        As timm's method of that name, for maps (B, C, H, W).
        """
        maps = self.forward(images)
        if isinstance(indices, int):
            chosen = maps[-indices:]
        else:
            chosen = maps if indices is None else [maps[index] for index in indices]
        return chosen if intermediates_only else (maps[-1], chosen)

    def _features(self, images: Tensor) -> FeatureMaps:
        task = self.source in self.student.config.tasks
        output = self.student(images, tasks=(self.source,) if task else ())
        return named_features(output)[self.source]


class Deployed(nn.Module):
    """A student in eval mode as a function of images alone, with outputs in a fixed order; `names` are theirs."""

    def __init__(self, student: Student, outputs: Outputs) -> None:
        super().__init__()
        config = student.config
        if outputs not in OUTPUTS:
            raise UsageError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}")
        if outputs != "features" and not config.tasks:
            raise UsageError(f"a student without task heads has no {outputs}: give --outputs features")
        self.student, self.outputs = student.eval(), outputs
        sources = tuple(config.tasks) if outputs == "task-features" else (STEM_EXPERT, *student.paths)
        levels = [f"level{level}" for level in config.tapped]
        of_levels = tuple(f"{source}.{level}" for source in sources for level in levels)
        self.names = tuple(config.tasks) if outputs == "predictions" else of_levels
        self._sources = sources

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised -> the outputs called `names`."""
        output = self.student(images, tasks=() if self.outputs == "features" else None)
        if self.outputs == "predictions":
            return tuple(output.tasks.values())
        features = named_features(output)
        return tuple(map_ for source in self._sources for map_ in features[source])


def named_features(output: StudentOutput) -> dict[str, FeatureMaps]:
    """TAS, teachers and tasks -> their levels."""
    return {STEM_EXPERT: output.tas, **output.paths, **output.fused}
