"""InvPT's decoder: preliminary decoders, then attention among all positions of all tasks at growing resolution.

Ye and Xu, "Inverted Pyramid Multi-task Transformer for Dense Scene Understanding", ECCV 2022. From its equations; no
line of its published code. Named departure: each task's levels are its own fused ones where the paper has one encoder
for all.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak.features import FeatureMaps, bilinear_resize, map_to_tokens, tokens_to_map
from sak.student.heads import Decoded, Decoder, DecoderShape, quarter_size

STAGES = 3
HEADS = 2
PASSED = 0.1  # where the weight of the passed attention starts; that of the stage's own starts at 1


def convolution(width: int, out: int) -> nn.Sequential:
    """Conv 3x3 - BatchNorm - ReLU."""
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class Preliminary(nn.Module):
    """One task's first guess from its deepest level, joined with the features it was made from."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(convolution(width, width), convolution(width, width))
        self.predict = nn.Conv2d(width, channels, 1)
        self.join = nn.Conv2d(width + channels, width, 1)

    def forward(self, map_: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the joined features, of that shape, and the guess (B, channels, H, W)."""
        features = self.features(map_)
        guess = self.predict(features)
        return self.join(torch.cat((features, guess), dim=1)), guess


class UpTransformer(nn.Module):
    """One stage: grids doubled (but in the first), then self-attention over all tasks, and an MLP.

    Queries come from half the stage's grid, keys and values always from half the first stage's, so attention has as
    many columns in every stage, and its logits of one stage are passed to the next, enlarged along the queries:
    A_s = a * Q K^T / sqrt(C) + b * Up(A_{s-1}).
    """

    def __init__(self, stage: int, width: int, level_width: int) -> None:
        super().__init__()
        self.stage, self.heads = stage, HEADS
        own = width // 2**stage
        self.enlarge = convolution(2 * own, own) if stage else nn.Identity()
        self.aggregate = nn.Conv2d(level_width, own, 1)
        self.norm = nn.LayerNorm(own)
        self.query = nn.Conv2d(own, own, 3, stride=2, padding=1, groups=own)
        self.to_query, self.to_key, self.to_value = (nn.Linear(own, own) for _ in range(3))
        self.own_weight = nn.Parameter(torch.ones(1))
        self.passed_weight = nn.Parameter(torch.full((1,), PASSED)) if stage else None
        self.project = nn.Linear(own, own)
        self.mlp_norm = nn.LayerNorm(own)
        self.mlp = nn.Sequential(nn.Linear(own, 4 * own), nn.GELU(), nn.Linear(4 * own, own))

    def forward(
        self, maps: Mapping[str, Tensor], levels: Mapping[str, Tensor], passed: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Task -> map of the stage before, task -> the level to aggregate -> task -> map, and the attention's logits.

        Logits are (B, heads, T, queries' H, queries' W, keys).
        """
        entered = {task: self._enter(map_, levels[task]) for task, map_ in maps.items()}
        tasks = list(entered)
        stacked = torch.stack([entered[task] for task in tasks], dim=1)
        attended, logits = self._attend(stacked, passed)
        changed = stacked + attended
        tokens = _tokens(changed)
        changed = _maps(tokens + self.mlp(self.mlp_norm(tokens)), changed)
        return {task: changed[:, index] for index, task in enumerate(tasks)}, logits

    def _enter(self, map_: Tensor, level: Tensor) -> Tensor:
        if self.stage:
            map_ = self.enlarge(bilinear_resize(map_, (2 * map_.shape[-2], 2 * map_.shape[-1])))
        return map_ + self.aggregate(bilinear_resize(level, (map_.shape[-2], map_.shape[-1])))

    def _attend(self, stacked: Tensor, passed: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, C, H, W) -> the change, of one shape, and the logits."""
        batch, count, width, height, columns = stacked.shape
        normed = _maps(self.norm(_tokens(stacked)), stacked).flatten(0, 1)
        queries = self.query(normed)
        grid = (queries.shape[-2], queries.shape[-1])
        pooled = F.avg_pool2d(normed, 2 ** (self.stage + 1), ceil_mode=True, count_include_pad=False)
        query = self._heads(self.to_query(map_to_tokens(queries)), batch)
        key, value = (self._heads(to(map_to_tokens(pooled)), batch) for to in (self.to_key, self.to_value))
        logits = self.own_weight * (query @ key.mT) / width**0.5
        logits = logits.unflatten(2, (count, *grid))
        if passed is not None and self.passed_weight is not None:
            logits = logits + self.passed_weight * _enlarge_queries(passed, grid)
        weights = logits.flatten(2, 4).softmax(-1).to(value.dtype)
        attended = self.project((weights @ value).transpose(1, 2).flatten(2))
        change = tokens_to_map(attended.reshape(batch * count, -1, width), prefix=0, grid=grid)
        return bilinear_resize(change, (height, columns)).unflatten(0, (batch, count)), logits

    def _heads(self, tokens: Tensor, batch: int) -> Tensor:
        """(B*T, n, C) -> (B, heads, T*n, C/heads)."""
        joined = tokens.reshape(batch, -1, tokens.shape[-1])
        return joined.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class InvPTDecoder(Decoder):
    """Preliminary decoders, three stages at 1, 2 and 4 times the deepest grid, and a head per task on their sum."""

    crosses_tasks = True

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        width = shape.width
        last = width // 2 ** (STAGES - 1)
        self.enlarge = shape.enlarge
        self._levels = tuple(max(0, len(shape.level_widths) - 2 - stage) for stage in range(STAGES))
        self.preliminary = nn.ModuleDict({task: Preliminary(width, own) for task, own in shape.tasks.items()})
        self.stages = nn.ModuleList(
            UpTransformer(stage, width, shape.level_widths[level]) for stage, level in enumerate(self._levels)
        )
        self.gather = nn.ModuleList(nn.Conv2d(width // 2**stage, last, 1) for stage in range(STAGES))
        self.fuse = nn.ModuleDict({task: convolution(last, last) for task in shape.tasks})
        self.out = nn.ModuleDict({task: nn.Conv2d(last, own, 1) for task, own in shape.tasks.items()})

    def forward(self, features: Mapping[str, FeatureMaps]) -> Decoded:
        """See Decoder; all tasks must be given."""
        begun = {task: self.preliminary[task](maps.maps[-1]) for task, maps in features.items()}
        current: dict[str, Tensor] = {task: joined for task, (joined, _) in begun.items()}
        size = quarter_size(next(iter(features.values())), self.enlarge)
        gathered = dict.fromkeys(features, torch.zeros((), device=next(iter(current.values())).device))
        logits: Tensor | None = None
        for stage, level, gather in zip(self.stages, self._levels, self.gather, strict=True):
            current, logits = stage(current, {task: maps.maps[level] for task, maps in features.items()}, logits)
            gathered = {task: gathered[task] + bilinear_resize(gather(map_), size) for task, map_ in current.items()}
        return Decoded(
            {task: self.out[task](self.fuse[task](map_)) for task, map_ in gathered.items()},
            preliminary={task: guess for task, (_, guess) in begun.items()} if self.training else {},
        )


def _enlarge_queries(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, heads, T, h, w, keys) -> (B, heads, T, *grid, keys), bilinearly along the queries."""
    batch, heads, tasks, _, _, keys = logits.shape
    images = logits.permute(0, 1, 2, 5, 3, 4).flatten(0, 2)
    return bilinear_resize(images, grid).unflatten(0, (batch, heads, tasks)).permute(0, 1, 2, 4, 5, 3)[..., :keys]


def _tokens(stacked: Tensor) -> Tensor:
    """(B, T, C, H, W) -> (B, T, H*W, C)."""
    return stacked.flatten(3).mT


def _maps(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_tokens`, into the shape of `like`."""
    return tokens.mT.reshape(like.shape)
