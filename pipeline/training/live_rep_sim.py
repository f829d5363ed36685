"""rep_sim of a fine-tuned student beside its live teachers, on a few validation images, drawn into the run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.live_teachers import LiveTeachers
from pipeline.training.held_out import Centred, HeldOut
from pipeline.training.rep_sim import own_units
from pipeline.training.run import RunDirectory
from pipeline.training.task_figures import draw_rep_sim, spread
from sak.losses.distillation import image_similarities
from sak.losses.standardise import Standardiser

BATCHES = 4
"""Of the evaluation's batch size, spread evenly over the validation split."""


@dataclass(frozen=True)
class Similarity:
    """The mean map cosine of `images` images: teacher -> a value for each of the student's `levels`."""

    levels: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    images: int

    def to_text(self) -> str:
        """The means of the levels in a line."""
        means = ", ".join(f"{name} {sum(row) / len(row):.4f}" for name, row in self.values.items())
        return f"rep_sim on {self.images} validation images: {means}"


def draw_live_rep_sim(
    run: RunDirectory,
    student: nn.Module,
    guides: LiveTeachers,
    held_out: HeldOut,
    standardised: Mapping[str, Sequence[Standardiser]],
) -> Path:
    """`rep_sim.png`, and a line of `train.log`; by one process alone."""
    found = live_similarity(student, guides, held_out, standardised)
    run.log(found.to_text())
    return draw_rep_sim(found.values, found.levels, run.figures / "rep_sim.png", images=found.images)


@torch.no_grad()
def live_similarity(
    student: nn.Module, guides: LiveTeachers, held_out: HeldOut, standardised: Mapping[str, Sequence[Standardiser]]
) -> Similarity:
    """The student's aligned maps against its teachers', of the very same pixels, after the loss's own resize.

    A student of `standardised` targets is measured in its teachers' own units.
    """
    training = student.training
    student.eval()
    levels: tuple[int, ...] = ()
    found: dict[str, list[Tensor]] = {name: [] for name in guides.teachers}
    for images in _batches(held_out):
        with held_out.accelerator.autocast():
            answers = student(images, tasks=()).teachers
        for name, targets in guides(images).items():
            levels = answers[name].levels
            found[name].append(image_similarities(own_units(answers[name], standardised.get(name)), targets).double())
    student.train(training)
    rows = {name: torch.cat(parts) for name, parts in found.items()}
    means = {name: tuple(row.mean(0).tolist()) for name, row in rows.items()}
    return Similarity(levels, means, max(len(row) for row in rows.values()))


def _batches(held_out: HeldOut) -> Iterator[Tensor]:
    """Normalised images (B, 3, H, W) on the device."""
    loader, size = Centred(held_out.dataset, held_out.size), held_out.recipe.batch_size
    places = spread(held_out.count, BATCHES * size)
    for start in range(0, len(places), size):
        images = torch.stack([loader.load(place).image for place in places[start : start + size]])
        yield images.to(held_out.accelerator.device)
