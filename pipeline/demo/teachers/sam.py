"""demo-sam: masks and boundaries without classes, at twice the view's resolution. The decoder is thrown away.

Every level also repaints its patches and says where they lie, so that shading and place are not given up for the
masks; see `repaint`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo.teachers.crops import CropPlan, SceneBatch, whole
from pipeline.demo.teachers.objective import Objective
from pipeline.demo.teachers.repaint import Repaint
from pipeline.demo.teachers.towers import by_quarters, new_tower
from pipeline.train.protocols import StepResult

VIEW = 96
FINE = 48
"""Side of the maps that the decoder draws: every second pixel of a view."""

POINTS = 24
"""Points of an image that ask for the mask they lie in."""

EMBEDDED = 32
HARD = 0.9
"""Weight of boundary pixels against the others'."""

REPAINTED = 10.0
"""Weight of the repainting."""


class Decoder(nn.Module):
    """(B, C, 12, 12) -> embeddings of things and of parts (B, 32, 48, 48) each, boundary logits (B, 48, 48)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.ConvTranspose2d(width, 64, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(64, 64, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(64, 2 * EMBEDDED + 1, 1),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        drawn = self.body(features)
        return drawn[:, :EMBEDDED], drawn[:, EMBEDDED:-1], drawn[:, -1]


class SamTraining(Objective):
    """A point asks for the mask it lies in, of a thing or of a person's part; boundaries are drawn beside."""

    says = (
        "masks of the thing and of the part under a point (BCE and Dice), and boundaries, no class labels; "
        "patches and their surroundings repainted, and patches placed, from every level"
    )
    best = "boundary_f"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tower = new_tower("sam", seed)
        self.decoder = Decoder(self.tower.embed_dim)
        self.repaint = Repaint(self.tower.embed_dim, VIEW // self._grid)
        self.scale = nn.Parameter(torch.full((2,), 0.2))
        self.offset = nn.Parameter(torch.full((2,), -1.0))

    def plans(self) -> Mapping[str, CropPlan]:
        """See Objective."""
        return {"crop": CropPlan(VIEW, (0.35, 1.0), jitter=0.3, labels=True)}

    def held_out_plan(self) -> CropPlan:
        """See Objective."""
        return whole(VIEW, labels=True)

    @property
    def _grid(self) -> int:
        grid: int = self.tower.patch_embed.grid_size[0]
        return grid

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, 12, 12, C) after each quarter of the blocks; views (B, 3, 96, 96) are seen at 192 px."""
        side = self.tower.patch_embed.img_size[0]
        large = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
        return by_quarters(self.tower.blocks, self.tower.patch_embed(large) + self.tower.pos_embed)

    def features(self, images: Tensor) -> Tensor:
        """The last block's map, (B, C, 12, 12)."""
        return self.levels(images)[-1].permute(0, 3, 1, 2)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Objective."""
        images = batch.tensors["crop"]
        levels = self.levels(images)
        repaint = self.repaint([level.flatten(1, 2) for level in levels], images, self._grid)
        things, parts, edges = self.decoder(levels[-1].permute(0, 3, 1, 2))
        labels = _labels(batch, "crop")
        boundary = _boundary_loss(edges, labels["edges"])
        whole_loss = self._masks(things, labels["things"], labels["points"], 0)
        part_loss = self._masks(parts, labels["parts"], labels["points"], 1)
        loss = 2 * boundary + whole_loss + 0.5 * part_loss + REPAINTED * repaint
        told = {"boundary": boundary, "masks": whole_loss, "part_masks": part_loss, "repaint": repaint}
        return StepResult(loss, {name: value.detach() for name, value in told.items()})

    def _masks(self, embedded: Tensor, labels: Tensor, points: Tensor, kind: int) -> Tensor:
        logits, wanted = self._asked(embedded, labels, points, kind)
        return F.binary_cross_entropy_with_logits(logits, wanted) + _dice(logits, wanted)

    def _asked(self, embedded: Tensor, labels: Tensor, points: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        """Mask logits and masks of the points: (B, POINTS, FINE * FINE) each."""
        flat, ids = embedded.flatten(2), labels.flatten(1)
        asking = flat.gather(2, points[:, None, :].expand(-1, flat.shape[1], -1))
        distance = (asking.pow(2).sum(1)[..., None] + flat.pow(2).sum(1)[:, None]) - 2 * asking.transpose(1, 2) @ flat
        logits = -self.scale[kind].abs() * distance - self.offset[kind]
        wanted = (ids.gather(1, points)[..., None] == ids[:, None]).to(logits.dtype)
        return logits, wanted

    def embed(self, images: Tensor) -> Tensor:
        """See Objective."""
        return self.features(images).flatten(2).mean(2)

    def measure(self, batch: SceneBatch) -> Mapping[str, float]:
        """Best F of the boundaries over thresholds, a pixel of slack; mean IoU of the masks under points."""
        labels = _labels(batch, "whole", generator=torch.Generator().manual_seed(0))
        outputs = [self.decoder(self.features(part)) for part in batch.tensors["whole"].split(32)]
        things, edges = torch.cat([o[0] for o in outputs]), torch.cat([o[2] for o in outputs])
        logits, wanted = self._asked(things, labels["things"], labels["points"], 0)
        said = logits > 0
        iou = (said & wanted.bool()).sum(2) / (said | wanted.bool()).sum(2).clamp(min=1)
        return {"boundary_f": _best_f(edges.sigmoid(), labels["edges"]), "mask_iou": float(iou.mean())}


def _labels(batch: SceneBatch, name: str, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Ids of things and parts and boundaries at FINE x FINE, and points: one pixel each, drawn evenly over things."""
    instances, parts = batch.tensors[f"{name}.instances"], batch.tensors[f"{name}.parts"]
    together = instances * 32 + parts
    edges = F.max_pool2d(_edges(together)[:, None], 2)[:, 0]
    things, fine_parts = instances[:, ::2, ::2], together[:, ::2, ::2]
    weights = torch.stack([1 / _counts(ids) for ids in fine_parts.flatten(1)]).cpu()
    points = torch.multinomial(weights, POINTS, replacement=True, generator=generator).to(instances.device)
    return {"things": things, "parts": fine_parts, "edges": edges, "points": points}


def _counts(ids: Tensor) -> Tensor:
    """How many pixels each pixel's id has, (n,)."""
    _, group, count = ids.unique(return_inverse=True, return_counts=True)
    return count[group].float().sqrt()


def _edges(ids: Tensor) -> Tensor:
    """Pixels (B, H, W) whose id differs from that of the right or lower neighbour, as 0 and 1."""
    edges = torch.zeros(ids.shape, device=ids.device)
    edges[:, :, :-1] += ids[:, :, :-1] != ids[:, :, 1:]
    edges[:, :-1] += ids[:, :-1] != ids[:, 1:]
    return edges.clamp(max=1)


def _boundary_loss(logits: Tensor, edges: Tensor) -> Tensor:
    weight = torch.where(edges > 0, HARD, 1 - HARD)
    return F.binary_cross_entropy_with_logits(logits, edges, weight=weight) * 2


def _dice(logits: Tensor, wanted: Tensor) -> Tensor:
    said = logits.sigmoid()
    return (1 - (2 * (said * wanted).sum(2) + 1) / (said.sum(2) + wanted.sum(2) + 1)).mean()


def _best_f(said: Tensor, edges: Tensor) -> float:
    """The largest F over thresholds; pixels meet that are at most one pixel apart."""
    near = F.max_pool2d(edges[:, None], 3, stride=1, padding=1)[:, 0]
    found = []
    for threshold in torch.linspace(0.1, 0.9, 17).tolist():
        drawn = (said > threshold).float()
        reached = F.max_pool2d(drawn[:, None], 3, stride=1, padding=1)[:, 0]
        precision = (drawn * near).sum() / drawn.sum().clamp(min=1)
        recall = (edges * reached).sum() / edges.sum().clamp(min=1)
        found.append(float(2 * precision * recall / (precision + recall).clamp(min=1e-6)))
    return max(found)
