"""demo-clip: images against captions, regions against phrases. The text tower is thrown away.

Both the captions and the phrases are written from the scene graph. An image finds its caption among the batch's, and
the tokens over a thing's visible mask (or a person's part's) find its phrase, so that language reaches single patches
in a training of minutes. Every level also repaints its patches; see `repaint`.
"""

from collections.abc import Mapping
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo.teachers.captions import LENGTH, REGIONS, WORDS
from pipeline.demo.teachers.crops import CropPlan, SceneBatch, whole
from pipeline.demo.teachers.objective import Objective
from pipeline.demo.teachers.repaint import Repaint
from pipeline.demo.teachers.towers import new_tower, vit_levels, vit_tokens
from pipeline.train.protocols import StepResult

SHARED = 128
"""Channels of the space where images and captions meet."""

TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 96, 2, 3
LARGEST_SCALE = 50.0

REPAINTED = 20.0
"""Weight of the repainting."""


class TextTower(nn.Module):
    """Word numbers (B, at most LENGTH), 0 filling up -> (B, TEXT_WIDTH): a small transformer, averaged over words."""

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
        tokens = self.norm(self.blocks(self.words(words) + self.places[: words.shape[1]], src_key_padding_mask=absent))
        kept = (~absent)[..., None].to(tokens.dtype)
        return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)


class ClipTraining(Objective):
    """Both towers and their projections. Images are averaged over their patches, so that patches carry the meaning."""

    says = (
        "contrast (InfoNCE) of images with captions of what is seen, how large and where, and of regions (tokens over "
        "a thing's or a person's part's visible mask) with their phrases; patches and their surroundings repainted, "
        "and patches placed, from every level"
    )
    best = "contrast"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tower = new_tower("clip", seed)
        width = self.tower.embed_dim
        self.norm, self.image = nn.LayerNorm(width), nn.Linear(width, SHARED)
        self.text_tower, self.text = TextTower(), nn.Linear(TEXT_WIDTH, SHARED)
        self.log_scale = nn.Parameter(torch.tensor([log(10.0), log(10.0)]))
        self.repaint = Repaint(width, self.tower.patch_embed.patch_size[0] // 2)

    def plans(self) -> Mapping[str, CropPlan]:
        """See Objective."""
        return {"crop": CropPlan(96, (0.35, 1.0), jitter=0.3, captions=True)}

    def held_out_plan(self) -> CropPlan:
        """See Objective."""
        return whole(128, captions=True)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Objective."""
        images = batch.tensors["crop"]
        levels = [level[:, 1:] for level in vit_levels(self.tower, images)]
        tokens, (of_images, of_regions) = self.norm(levels[-1]), self.log_scale.exp().clamp(max=LARGEST_SCALE)
        logits = self._similar(tokens.mean(1), batch.tensors["crop.words"]) * of_images
        target = torch.arange(len(logits), device=logits.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        similar, wanted = self._regions(tokens, batch, "crop")
        regions = F.cross_entropy(similar * of_regions, wanted)
        repaint = self.repaint(levels, images, round(tokens.shape[1] ** 0.5))
        told = {"contrast_loss": contrast, "regions_loss": regions, "repaint": repaint}
        right = {"contrast_training": (logits.argmax(1) == target).float().mean()}
        loss = contrast + regions + REPAINTED * repaint
        return StepResult(loss, {name: value.detach() for name, value in (told | right).items()})

    def _similar(self, tokens: Tensor, words: Tensor) -> Tensor:
        seen = F.normalize(self.image(tokens), dim=1)
        said = F.normalize(self.text(self.text_tower(words)), dim=1)
        return seen @ said.T

    def _regions(self, tokens: Tensor, batch: SceneBatch, name: str) -> tuple[Tensor, Tensor]:
        """Likeness of every region to every phrase of the batch, each phrase once, and which phrase is the region's."""
        phrases, shares = batch.tensors[f"{name}.phrases"], _shares(batch.tensors[f"{name}.regions"], tokens.shape[1])
        there = (phrases[..., 0] > 0) & (shares.sum(2) > 0)
        pooled = (shares @ tokens / shares.sum(2, keepdim=True).clamp(min=1e-6))[there]
        said, wanted = phrases[there].unique(dim=0, return_inverse=True)
        return self._similar(pooled, said), wanted

    def embed(self, images: Tensor) -> Tensor:
        """See Objective."""
        return self._tokens(images).mean(1)

    def _tokens(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.norm(vit_tokens(self.tower, images)[:, 1:])
        return tokens

    def measure(self, batch: SceneBatch) -> Mapping[str, float]:
        """How often the nearest caption, or phrase, of the batch's, of 64 images at a time, is the own."""
        right: dict[str, list[Tensor]] = {"contrast": [], "region_contrast": []}
        for start in range(0, len(batch.tensors["whole"]), 64):
            part = SceneBatch([], {key: value[start : start + 64] for key, value in batch.tensors.items()})
            tokens = self._tokens(part.tensors["whole"])
            nearest = self._similar(tokens.mean(1), part.tensors["whole.words"]).argmax(1)
            right["contrast"].append(nearest == torch.arange(len(tokens), device=tokens.device))
            similar, wanted = self._regions(tokens, part, "whole")
            right["region_contrast"].append(similar.argmax(1) == wanted)
        return {name: float(torch.cat(values).float().mean()) for name, values in right.items()}


def _shares(regions: Tensor, patches: int) -> Tensor:
    """Maps of phrase numbers (B, 2, H, W) -> how much of each patch a region covers, (B, 2 * REGIONS, patches)."""
    numbers = torch.arange(1, 2 * REGIONS + 1, device=regions.device).view(1, 2, REGIONS, 1, 1)
    masks = (regions[:, :, None] == numbers).flatten(1, 2).float()
    return F.adaptive_avg_pool2d(masks, round(patches**0.5)).flatten(2)
