"""A frozen teacher under one small head a task: features computed once, so that a probe takes half a CPU minute.

The head is the same for all teachers and tasks: the four levels side by side, standardised by channel over the training
images, then per token Conv 1x1 (HIDDEN), GELU, Conv 1x1 to 4 x 4 places of the task's channels, and bilinear to the
image. Images are whole and padded to 128 x 128.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import for_evaluation
from pipeline.data.datasets import open_dataset, task_table
from pipeline.dense.evaluation import evaluate_tasks
from pipeline.train.config import TrainingConfig
from pipeline.train.devices import make_accelerator
from sak.losses.tasks import LOSSES, alone
from sak.tasks import Dataset
from sak.teachers import Teacher, build_teacher

SIDE = 128
HIDDEN = 128
PLACES = 4
BATCH = 16
RATE = 2e-3


@dataclass(frozen=True)
class Frozen:
    """A teacher's features of the training images (n, C, h, w), and its labels at half the images' size."""

    features: Tensor
    labels: Mapping[str, Tensor]
    mean: Tensor
    deviation: Tensor


class Heads(nn.Module):
    """One head a task, on standardised features."""

    def __init__(self, frozen: Frozen, rows: Dataset) -> None:
        super().__init__()
        self.register_buffer("mean", frozen.mean)
        self.register_buffer("deviation", frozen.deviation)
        width = frozen.features.shape[1]
        self.heads = nn.ModuleDict(
            {
                task.name: nn.Sequential(
                    nn.Conv2d(width, HIDDEN, 1),
                    nn.GELU(),
                    nn.Conv2d(HIDDEN, task.channels * PLACES**2, 1),
                    nn.PixelShuffle(PLACES),
                )
                for task in rows
            }
        )

    def forward(self, features: Tensor, side: int) -> dict[str, Tensor]:
        """(B, C, h, w) -> task -> (B, channels, side, side)."""
        standard = (features - self.mean) / self.deviation
        size = (side, side)
        return {
            task: F.interpolate(head(standard), size=size, mode="bilinear", align_corners=False)
            for task, head in self.heads.items()
        }


def teacher_of(who: str, seed: int) -> Teacher:
    """`dino`, `clip`, `sam` or `stem`; with `-random`, its own architecture with the weights `random:SEED`."""
    name, _, random = who.partition("-")
    weights = f"random:{seed}" if random else "pretrained"
    square = 2 * SIDE if name == "sam" else None
    return build_teacher(
        f"demo/{name}", weights=weights, image_size=SIDE, input_size=square, sam_padding="crop", device="cpu"
    )


@torch.no_grad()
def freeze(teacher: Teacher, dataset: str, data: Path) -> Frozen:
    """Look once at every training image."""
    images, labels = _training(dataset, data)
    features = torch.cat([_side_by_side(teacher, part) for part in images.split(16)])
    return Frozen(features, labels, features.mean((0, 2, 3), True), features.std((0, 2, 3), keepdim=True).clamp(1e-6))


def probe(who: str, dataset: str, data: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the heads for `steps` batches and measure every task on the validation images.

    `seed` draws the heads and the order; for a random teacher also its weights.
    """
    rows, teacher = task_table(dataset), teacher_of(who, seed)
    frozen = freeze(teacher, dataset, data)
    torch.manual_seed(seed)
    heads = Heads(frozen, rows)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(frozen.features), (BATCH,))
        found = heads(frozen.features[chosen], SIDE // 2)
        losses = [LOSSES[task.loss](found[task.name], frozen.labels[task.name][chosen], alone) for task in rows]
        torch.stack(losses).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    heads.eval()

    @torch.no_grad()
    def predict(images: Tensor) -> Mapping[str, Tensor]:
        return heads(_side_by_side(teacher, images), SIDE)

    accelerator = make_accelerator(TrainingConfig(steps=1), device="cpu")
    validation = open_dataset(dataset, data, "val")
    return evaluate_tasks(predict, validation, rows, size=(SIDE, SIDE), accelerator=accelerator).metrics


@lru_cache(maxsize=2)
def _training(dataset: str, data: Path) -> tuple[Tensor, Mapping[str, Tensor]]:
    """All training images (n, 3, SIDE, SIDE), and their labels at every second pixel."""
    source = open_dataset(dataset, data, "train")
    samples = [for_evaluation(source[place], (SIDE, SIDE)) for place in range(len(source))]
    labels = {task: torch.stack([sample.labels[task][:, ::2, ::2] for sample in samples]) for task in samples[0].labels}
    if "edge" in labels:  # thin lines would fall between: a place is boundary where one of its four pixels is
        whole = torch.stack([sample.labels["edge"] for sample in samples])
        labels["edge"] = F.max_pool2d(torch.where(whole == 255, 0, whole), 2)
    return torch.stack([sample.image for sample in samples]), labels


def _side_by_side(teacher: Teacher, images: Tensor) -> Tensor:
    return torch.cat(tuple(teacher.from_imagenet(images)), dim=1)
