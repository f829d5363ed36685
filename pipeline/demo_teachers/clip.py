"""demo-clip: images against captions. The text tower is thrown away."""

from collections.abc import Mapping
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.demo.captions import LENGTH, WORDS
from pipeline.demo_teachers.scenes import CropPlan, SceneBatch, whole
from pipeline.demo_teachers.towers import new_tower, vit_tokens
from pipeline.demo_teachers.trained import Trained
from pipeline.training.protocols import StepResult

SHARED = 128
"""Channels of the space where images and captions meet."""

TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 96, 2, 3
LARGEST_SCALE = 50.0


class TextTower(nn.Module):
    """Word numbers (B, LENGTH), 0 filling up -> (B, TEXT_WIDTH): a small transformer, averaged over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), TEXT_WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, TEXT_WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH, TEXT_HEADS, 4 * TEXT_WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, TEXT_DEPTH, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(TEXT_WIDTH)

    def forward(self, words: Tensor) -> Tensor:
        """See the class."""
        absent = words == 0
        tokens = self.norm(self.blocks(self.words(words) + self.places, src_key_padding_mask=absent))
        kept = (~absent)[..., None].to(tokens.dtype)
        return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)


class ClipTraining(Trained):
    """Both towers and their projections. Images are averaged over their patches, so that patches carry the meaning."""

    says = "image-caption contrast (InfoNCE both ways) with captions of what is seen, how large and where"
    best = "contrast"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tower = new_tower("clip", seed)
        width = self.tower.embed_dim
        self.norm, self.image = nn.LayerNorm(width), nn.Linear(width, SHARED)
        self.text_tower, self.text = TextTower(), nn.Linear(TEXT_WIDTH, SHARED)
        self.log_scale = nn.Parameter(torch.tensor(log(10.0)))

    def plans(self) -> Mapping[str, CropPlan]:
        """See Trained."""
        return {"crop": CropPlan(96, (0.35, 1.0), jitter=0.3, captions=True)}

    def held_out_plan(self) -> CropPlan:
        """See Trained."""
        return whole(128, captions=True)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Trained."""
        similar = self._similar(batch.tensors["crop"], batch.tensors["crop.words"])
        logits = similar * self.log_scale.exp().clamp(max=LARGEST_SCALE)
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = (logits.argmax(1) == target).float().mean()
        return StepResult(loss, {"contrast_training": right.detach()})

    def _similar(self, images: Tensor, words: Tensor) -> Tensor:
        seen = F.normalize(self.image(self.embed(images)), dim=1)
        said = F.normalize(self.text(self.text_tower(words)), dim=1)
        return seen @ said.T

    def embed(self, images: Tensor) -> Tensor:
        """See Trained."""
        return self.norm(vit_tokens(self.tower, images)[:, 1:]).mean(1)

    def measure(self, batch: SceneBatch) -> Mapping[str, float]:
        """How often an image's own caption is the nearest of the batch's, of 64 at a time."""
        right = []
        for images, words in zip(batch.tensors["whole"].split(64), batch.tensors["whole.words"].split(64), strict=True):
            right.append(self._similar(images, words).argmax(1) == torch.arange(len(images), device=images.device))
        return {"contrast": float(torch.cat(right).float().mean())}
