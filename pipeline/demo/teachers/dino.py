"""demo-dino: self-distillation from a moving average with masked patches and many crops, no labels.

Departures from DINOv2, for a training of half an hour: prototypes learn nothing in so few steps, so everything is told
apart by contrast (InfoNCE) with the moving average's answers - crops from the batch's other scenes; patches, and hidden
patches, from all other patches, where the same place of a scene, seen in the other crop, is the right answer. Hidden
patches are also painted, and crops of which nothing is hidden are repainted from every level; see `repaint`. The heads
are thrown away.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo.teachers.crops import CropPlan, SceneBatch, whole
from pipeline.demo.teachers.objective import Objective
from pipeline.demo.teachers.repaint import Repaint
from pipeline.demo.teachers.towers import new_tower, vit_levels, vit_tokens
from pipeline.train.protocols import StepResult

HIDDEN, BOTTLENECK = 256, 64
IMAGE_TEMPERATURE, PATCH_TEMPERATURE = 0.15, 0.1
MOMENTUM = 0.98
LOCALS = 2
MASKED = (0.3, 0.6)
PAIRS = 768
"""Patches of a batch that look for their place in the other crop, at most."""

REPAINTED = 6.0
"""Weight of the repainting."""


class Projection(nn.Module):
    """(n, C) -> unit vectors (n, BOTTLENECK)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.body = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK))

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.body(self.norm(tokens)), dim=-1)


class Branch(nn.Module):
    """A tower, and the projections of its images and of its patches."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower: Any = tower
        self.image, self.patch = Projection(tower.embed_dim), Projection(tower.embed_dim)

    def of_images(self, tokens: Tensor) -> Tensor:
        """Class token and mean patch of (B, 1 + n, C) -> (B, BOTTLENECK)."""
        return self.image(tokens[:, 0] + tokens[:, 1:].mean(1))


class DinoTraining(Objective):
    """The student learns from its own moving average, which sees whole crops where it sees masked and small ones."""

    says = (
        "self-distillation from a moving average, no labels (InfoNCE): crops find their scene among the batch's, "
        "patches their place in the other crop, hidden patches what is there, in features and in pixels; patches and "
        "their surroundings repainted, and patches placed, from every level"
    )
    best = "knn"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.student = Branch(new_tower("dino", seed))
        tower = self.student.tower
        self.mask_token = nn.Parameter(torch.zeros(tower.embed_dim))
        self.paint = nn.Linear(tower.embed_dim, 3 * tower.patch_embed.patch_size[0] ** 2)
        self.repaint = Repaint(tower.embed_dim, tower.patch_embed.patch_size[0] // 2)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @property
    def tower(self) -> Any:  # the averaged one is the better teacher
        """The moving average's."""
        return self.teacher.tower

    def plans(self) -> Mapping[str, CropPlan]:
        """See Objective."""
        return {
            "global": CropPlan(84, (0.35, 1.0), count=2, jitter=0.4, grey=0.2, places=True),
            "local": CropPlan(56, (0.1, 0.4), count=LOCALS, jitter=0.4, grey=0.2),
        }

    def held_out_plan(self) -> CropPlan:
        """See Objective."""
        return whole(126)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Objective."""
        if self.training:
            self._follow()
        large, small = batch.tensors["global"], batch.tensors["local"]
        with torch.no_grad():
            seen = vit_tokens(self.teacher.tower, large)
            keys, places = self.teacher.of_images(seen).chunk(2), self.teacher.patch(seen[:, 1:])
        mask = _masks(len(large), seen.shape[1] - 1, large.device)
        levels = vit_levels(self.student.tower, large, mask, self.mask_token)
        tokens, patches = levels[-1], self.student.patch(levels[-1][:, 1:])
        parts = {
            "image": self._images(tokens, small, keys),
            "patch": _places(patches, places, mask, batch.tensors["global.places"]),
            "hidden": _contrast(patches[mask], places[mask], PATCH_TEMPERATURE),
            "paint": F.smooth_l1_loss(self.paint(tokens[:, 1:][mask]), self._pixels(large)[mask]),
            "repaint": self._repaint(levels, large),
        }
        loss = torch.stack(tuple(parts.values())).sum() + (REPAINTED - 1) * parts["repaint"]
        return StepResult(loss, {name: part.detach() for name, part in parts.items()})

    def _repaint(self, levels: tuple[Tensor, ...], large: Tensor) -> Tensor:
        """Every second crop, of which nothing is hidden, is repainted; see `_masks`."""
        grid = round((levels[0].shape[1] - 1) ** 0.5)
        loss: Tensor = self.repaint([level[::2, 1:] for level in levels], large[::2], grid)
        return loss

    def _images(self, tokens: Tensor, small: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
        """Every crop finds its scene among those of the moving average's crops."""
        first, second = self.student.of_images(tokens).chunk(2)
        pairs = [(first, keys[1]), (second, keys[0])]
        for local in self.student.of_images(vit_tokens(self.student.tower, small)).chunk(LOCALS):
            pairs += [(local, key) for key in keys]
        return torch.stack([_contrast(query, key, IMAGE_TEMPERATURE) for query, key in pairs]).mean()

    def _pixels(self, images: Tensor) -> Tensor:
        """What each patch shows, (B, n, 3 * patch^2)."""
        patch: int = self.student.tower.patch_embed.patch_size[0]
        return F.unfold(images, patch, stride=patch).transpose(1, 2)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the student."""
        own: list[Tensor] = list(self.teacher.parameters())
        torch._foreach_lerp_(own, [parameter.detach() for parameter in self.student.parameters()], 1 - MOMENTUM)

    def embed(self, images: Tensor) -> Tensor:
        """See Objective."""
        tokens = vit_tokens(self.teacher.tower, images)
        return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)


def _masks(images: int, patches: int, device: torch.device) -> Tensor:
    """Which patches are hidden, (images, patches): a share in MASKED of every second image's, none of the others'."""
    shares = torch.empty(images, 1).uniform_(*MASKED)
    shares[::2] = 0
    order = torch.rand(images, patches).argsort(1).argsort(1)
    return (order < shares * patches).to(device)


def _contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE: row i of the queries belongs to row i of the keys."""
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _places(patches: Tensor, keys: Tensor, mask: Tensor, boxes: Tensor) -> Tensor:
    """Patches (2B, n, D) that are not hidden find the key of the patch of the other crop at the same place."""
    half = len(patches) // 2
    other = torch.arange(len(patches), device=patches.device).roll(half)
    match, there = nearest_places(boxes, boxes[other], int(patches.shape[1] ** 0.5))
    images, own = (there & ~mask).nonzero(as_tuple=True)
    chosen = torch.randperm(len(images))[:PAIRS].to(images.device)
    images, own = images[chosen], own[chosen]
    return _contrast(patches[images, own], keys[other[images], match[images, own]], PATCH_TEMPERATURE)


def nearest_places(boxes: Tensor, others: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """For each patch of crops at `boxes` the patch of those at `others` that holds its centre, and whether one does.

    boxes, others: (B, 4), see SceneBatch. -> indices (B, grid^2), truth (B, grid^2).
    """
    steps = (torch.arange(grid, device=boxes.device) + 0.5) / grid
    found, inside = [], []
    for axis in (0, 1):
        centre = boxes[:, axis, None] + steps * boxes[:, axis + 2, None]
        position = (centre - others[:, axis, None]) / others[:, axis + 2, None] * grid
        inside.append((position >= 0) & (position < grid))
        found.append(position.long().clamp(0, grid - 1))
    match = found[0][:, :, None] * grid + found[1][:, None, :]
    return match.flatten(1), (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)
