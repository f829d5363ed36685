"""demo-stem: a small ViT supervised on the scene's main class, as the paper's stem is on ImageNet's."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo.teachers.crops import CropPlan, SceneBatch, whole
from pipeline.demo.teachers.objective import Objective
from pipeline.demo.teachers.towers import new_tower, vit_tokens
from pipeline.demo.things.classes import SUBJECTS
from pipeline.train.protocols import StepResult

SMOOTHING = 0.1


class StemTraining(Objective):
    """A classifier on the class token."""

    says = "main class of the scene, cross-entropy with label smoothing, read off the class token"
    best = "accuracy"
    subjects_only = True

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tower = new_tower("stem", seed)
        width = self.tower.embed_dim
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(SUBJECTS))

    def plans(self) -> Mapping[str, CropPlan]:
        """See Objective."""
        return {"crop": CropPlan(96, (0.35, 1.0), jitter=0.3)}

    def held_out_plan(self) -> CropPlan:
        """See Objective."""
        return whole(128)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Objective."""
        logits = self.head(self.embed(batch.tensors["crop"]))
        loss = F.cross_entropy(logits, batch.tensors["subject"], label_smoothing=SMOOTHING)
        right = (logits.argmax(1) == batch.tensors["subject"]).float().mean()
        return StepResult(loss, {"accuracy_training": right.detach()})

    def embed(self, images: Tensor) -> Tensor:
        """See Objective."""
        return self.norm(vit_tokens(self.tower, images)[:, 0])

    def measure(self, batch: SceneBatch) -> Mapping[str, float]:
        """Accuracy on the scenes that have a main class."""
        known = batch.tensors["subject"] >= 0
        logits = self.head(self.embed(batch.tensors["whole"][known]))
        return {"accuracy": float((logits.argmax(1) == batch.tensors["subject"][known]).float().mean())}
