"""From a teacher's grid to the stored one: as it is, SAM's projected onto the student's, or averaged over areas."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sak.losses.projection import Grid, is_projectable, project


@dataclass(frozen=True)
class Reduced:
    """One level on the stored grid.

    Attributes:
        map: (B, C, h, w); as it came where the native map is kept, otherwise at least float32.
        leftover: |t - Up|^2 of each image, float32 (B,), where the map was projected.
        energy: |t|^2 of each image's map on the teacher's grid, float64 (B,), on the map's device.
    """

    map: Tensor
    leftover: Tensor | None
    energy: Tensor


@dataclass(frozen=True)
class Reduction:
    """What is done to one teacher's maps: `kind` is native, projection or area; grids are (height, width)."""

    kind: str
    teacher_grid: Grid
    student_grid: Grid

    @property
    def effective(self) -> str:
        """The kind that is done: native where the teacher is not taller than the student."""
        return self.kind if is_projectable(self.teacher_grid, self.student_grid) else "native"

    @property
    def stored_grid(self) -> Grid:
        """(h, w) of the maps that are stored."""
        return self.teacher_grid if self.effective == "native" else self.student_grid

    @property
    def has_leftover(self) -> bool:
        """Whether a left-over energy is stored beside each map."""
        return self.effective == "projection"

    @torch.no_grad()
    def __call__(self, map_: Tensor) -> Reduced:
        """Reduce a teacher map (B, C, H, W); ValueError where H and W are not `teacher_grid`."""
        if map_.ndim != 4 or tuple(map_.shape[-2:]) != self.teacher_grid:
            height, width = self.teacher_grid
            raise ValueError(f"maps must be (B, C, {height}, {width}), got {tuple(map_.shape)}")
        energy = map_.float().square().sum(1).sum((1, 2), dtype=torch.float64)
        if self.effective == "projection":
            target = project(map_, self.student_grid)
            return Reduced(target.map, target.leftover, energy)
        return Reduced(area_pool(map_, self.student_grid) if self.effective == "area" else map_, None, energy)


def area_pool(map_: Tensor, grid: Grid) -> Tensor:
    """Average a map (B, C, H, W) over the area of each cell of `grid`, at least float32; exact where cells cut pixels.

    Not what torch calls `area` (adaptive pooling), whose cells overlap where the grids do not divide each other.
    """
    dtype = torch.promote_types(map_.dtype, torch.float32)
    rows = area_matrix(map_.shape[-2], grid[0]).to(map_.device, dtype)
    columns = area_matrix(map_.shape[-1], grid[1]).to(map_.device, dtype)
    return rows @ map_.to(dtype) @ columns.T


@lru_cache(maxsize=64)
def area_matrix(source: int, target: int) -> Tensor:
    """(target, source) float64: the share of each source cell in each target cell; do not write into it."""
    if not 1 <= target <= source:
        raise ValueError(f"areas are averaged onto a grid that is not finer, got {source} -> {target}")
    edges = torch.arange(target + 1, dtype=torch.float64) * (source / target)
    cells = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return overlap.clamp(min=0) * (target / source)
