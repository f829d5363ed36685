"""What every objective gives the trainer: a tower with the parts that only training needs, its crops and measures."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.demo.teachers.crops import CropPlan, SceneBatch
from pipeline.demo.things.classes import SUBJECTS
from pipeline.train.checkpoint import read_tensors
from pipeline.train.protocols import StepResult


class Objective(nn.Module):
    """A tower and all that is thrown away when it is done.

    `says` is the objective in a line; `best` names the measure that tells how good the tower is, higher being better;
    `subjects_only` leaves out scenes without a main class.
    """

    says: ClassVar[str]
    best: ClassVar[str]
    subjects_only: ClassVar[bool] = False

    tower: Any

    @abstractmethod
    def plans(self) -> Mapping[str, CropPlan]:
        """How training scenes are cut, by the name the crops have in a batch."""

    @abstractmethod
    def held_out_plan(self) -> CropPlan:
        """How whole held-out scenes are shown; they are called `whole` in a batch."""

    def forward(self, batch: SceneBatch) -> StepResult:
        """The loss, so that the loop's wrappers see it as the model's call."""
        return self.loss(batch)

    @abstractmethod
    def loss(self, batch: SceneBatch) -> StepResult:
        """The objective on one batch."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """A descriptor of each image, to find its neighbours by: (B, 3, H, W) -> (B, C)."""

    def measure(self, batch: SceneBatch) -> Mapping[str, float]:
        """The objective's own measures on held-out scenes."""
        del batch
        return {}


NEAREST = 10
SHARPNESS = 0.1


@dataclass(frozen=True)
class Neighbours:
    """Scenes that are known, and scenes asked about; whole, as `whole` in the batches, with a main class each."""

    known: SceneBatch
    asked: SceneBatch

    @torch.no_grad()
    def accuracy(self, model: Objective) -> float:
        """Share of the scenes asked about whose class the weighted vote of their nearest known ones finds.

        Descriptors are standardised by the known ones, then compared by cosine.
        """
        known, asked = _described(model, self.known), _described(model, self.asked)
        mean, deviation = known.mean(0), known.std(0).clamp(min=1e-6)
        similar = F.normalize((asked - mean) / deviation) @ F.normalize((known - mean) / deviation).T
        closeness, indices = similar.topk(min(NEAREST, len(known)), dim=1)
        votes = torch.zeros(len(asked), len(SUBJECTS), device=asked.device)
        votes.scatter_add_(1, self.known.tensors["subject"][indices], (closeness / SHARPNESS).exp())
        return float((votes.argmax(1) == self.asked.tensors["subject"]).float().mean())


def _described(model: Objective, batch: SceneBatch) -> Tensor:
    return torch.cat([model.embed(images) for images in batch.tensors["whole"].split(64)])


NAME = "model.safetensors"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write everything, what is thrown away later too."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / NAME)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Put them back; CheckpointError where they cannot be read."""
    model.load_state_dict(read_tensors(folder / NAME))
