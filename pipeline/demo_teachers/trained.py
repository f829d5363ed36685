"""What every objective gives the trainer: a tower with the parts that only training needs, its crops and measures."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from pipeline.demo_teachers.scenes import CropPlan, SceneBatch
from pipeline.training.protocols import StepResult


class Trained(nn.Module):
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
