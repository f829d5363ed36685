"""How well a descriptor tells main classes apart: held-out scenes among their nearest neighbours."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.demo.classes import SUBJECTS
from pipeline.demo_teachers.scenes import SceneBatch
from pipeline.demo_teachers.trained import Trained

NEAREST = 10
SHARPNESS = 0.1


@dataclass(frozen=True)
class Neighbours:
    """Scenes that are known, and scenes asked about; whole, as `whole` in the batches, with a main class each."""

    known: SceneBatch
    asked: SceneBatch

    @torch.no_grad()
    def accuracy(self, model: Trained) -> float:
        """Share of the scenes asked about whose class the weighted vote of their nearest known ones finds.

        Descriptors are standardised by the known ones, then compared by cosine.
        """
        known, asked = _described(model, self.known), _described(model, self.asked)
        mean, deviation = known.mean(0), known.std(0).clamp(min=1e-6)
        similar = F.normalize((asked - mean) / deviation) @ F.normalize((known - mean) / deviation).T
        closeness, places = similar.topk(min(NEAREST, len(known)), dim=1)
        votes = torch.zeros(len(asked), len(SUBJECTS), device=asked.device)
        votes.scatter_add_(1, self.known.tensors["subject"][places], (closeness / SHARPNESS).exp())
        return float((votes.argmax(1) == self.asked.tensors["subject"]).float().mean())


def _described(model: Trained, batch: SceneBatch) -> Tensor:
    return torch.cat([model.embed(images) for images in batch.tensors["whole"].split(64)])
