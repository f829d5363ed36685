"""demo-dino: self-distillation from a moving average with masked patches and many crops, no labels.

Departures from DINOv2, for a training of minutes: crops are told apart by contrast within the batch (InfoNCE), where
DINO's prototypes have learnt nothing yet after 150 steps; patches keep the prototypes with balanced targets (iBOT). The
heads are thrown away.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.demo_teachers.scenes import CropPlan, SceneBatch, whole
from pipeline.demo_teachers.towers import new_tower, vit_tokens
from pipeline.demo_teachers.trained import Trained
from pipeline.training.protocols import StepResult

PROTOTYPES, HIDDEN, BOTTLENECK = 512, 256, 64
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.06
CONTRAST_TEMPERATURE = 0.15
MOMENTUM = 0.98
LOCALS = 2
MASKED = (0.2, 0.5)


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
    """A tower, the projection of its images, and that of its patches with prototypes to compare them with."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower: Any = tower
        self.image, self.patch = Projection(tower.embed_dim), Projection(tower.embed_dim)
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def of_images(self, tokens: Tensor) -> Tensor:
        """Class token and mean patch of (B, 1 + n, C) -> (B, BOTTLENECK)."""
        return self.image(tokens[:, 0] + tokens[:, 1:].mean(1))

    def of_patches(self, patches: Tensor) -> Tensor:
        """(n, C) -> similarities with the prototypes (n, PROTOTYPES)."""
        return self.patch(patches) @ F.normalize(self.prototypes, dim=-1).T


class DinoTraining(Trained):
    """The student learns from its own moving average, which sees whole crops where it sees masked and small ones."""

    says = (
        "self-distillation from a moving average, no labels: crops find their scene among the batch's (InfoNCE), "
        "masked patches answer as the whole crop's do (balanced prototypes)"
    )
    best = "knn"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.student = Branch(new_tower("dino", seed))
        self.mask_token = nn.Parameter(torch.zeros(self.student.tower.embed_dim))
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @property
    def tower(self) -> Any:  # the averaged one is the better teacher
        """The moving average's."""
        return self.teacher.tower

    def plans(self) -> Mapping[str, CropPlan]:
        """See Trained."""
        return {
            "global": CropPlan(84, (0.35, 1.0), count=2, jitter=0.4, grey=0.2),
            "local": CropPlan(56, (0.1, 0.4), count=LOCALS, jitter=0.4, grey=0.2),
        }

    def held_out_plan(self) -> CropPlan:
        """See Trained."""
        return whole(126)

    def loss(self, batch: SceneBatch) -> StepResult:
        """See Trained."""
        if self.training:
            self._follow()
        large, small = batch.tensors["global"], batch.tensors["local"]
        with torch.no_grad():
            seen = vit_tokens(self.teacher.tower, large)
            keys = self.teacher.of_images(seen).chunk(2)
        mask = _masks(len(large), seen.shape[1] - 1, large.device)
        tokens = vit_tokens(self.student.tower, large, mask, self.mask_token)
        first, second = self.student.of_images(tokens).chunk(2)
        pairs = [(first, keys[1]), (second, keys[0])]
        for local in self.student.of_images(vit_tokens(self.student.tower, small)).chunk(LOCALS):
            pairs += [(local, key) for key in keys]
        image = torch.stack([_contrast(query, key) for query, key in pairs]).mean()
        with torch.no_grad():
            targets = _balanced(self.teacher.of_patches(seen[:, 1:][mask]))
        patch = _cross_entropy(targets, self.student.of_patches(tokens[:, 1:][mask]))
        return StepResult(image + patch, {"image": image.detach(), "patch": patch.detach()})

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the student."""
        own: list[Tensor] = list(self.teacher.parameters())
        torch._foreach_lerp_(own, [parameter.detach() for parameter in self.student.parameters()], 1 - MOMENTUM)

    def embed(self, images: Tensor) -> Tensor:
        """See Trained."""
        tokens = vit_tokens(self.teacher.tower, images)
        return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)


def _masks(images: int, patches: int, device: torch.device) -> Tensor:
    """Which patches are hidden, (images, patches): a share in MASKED of every second image's, none of the others'."""
    shares = torch.empty(images, 1).uniform_(*MASKED)
    shares[::2] = 0
    order = torch.rand(images, patches).argsort(1).argsort(1)
    return (order < shares * patches).to(device)


def _contrast(queries: Tensor, keys: Tensor) -> Tensor:
    """InfoNCE: row i of the queries belongs to row i of the keys."""
    logits = queries @ keys.T / CONTRAST_TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@torch.no_grad()
def _balanced(similar: Tensor, rounds: int = 3) -> Tensor:
    """Targets (n, PROTOTYPES) that use all prototypes alike over the batch (Sinkhorn-Knopp)."""
    weights = ((similar - similar.max()) / TEACHER_TEMPERATURE).exp()
    for _ in range(rounds):
        weights = weights / weights.sum(0, keepdim=True).clamp(min=1e-9) / weights.shape[1]
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9) / weights.shape[0]
    return weights * weights.shape[0]


def _cross_entropy(targets: Tensor, similar: Tensor) -> Tensor:
    return -(targets * (similar / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1).mean()
