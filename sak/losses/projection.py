"""What a student is compared with: a teacher's full maps, or a taller grid's (SAM's) projected onto the student's.

A projection gives what the loss needs without the map. U, (H*W) x (h*w), is the loss's own bilinear up-sampling from
the student's grid to the teacher's; t is a teacher map, p = pinv(U) t its projection, s a student map. As t - Up is
orthogonal to the range of U,

    <Us, t> = <Us, Up>,   |t|^2 = |Up|^2 + leftover,   |Us - t|^2 = |U(s - p)|^2 + leftover,

with leftover = |t - Up|^2: map cosine and squared error on the teacher's grid follow exactly from p and one number a
map. U is the Kronecker product of two small matrices, so <Us, Up> is the sum of (Gh s Gw) * p with the Gram matrices
G = U^T U of its factors, and the teacher's grid is never filled in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sak.errors import UsageError
from sak.features import FeatureMaps, LevelMaps, bilinear_resize, resize_matrix

Grid = tuple[int, int]
Made = TypeVar("Made", bound=Callable[..., object])


@dataclass(frozen=True)
class ProjectedTarget:
    """A teacher map on the student's grid and the energy that the student's grid cannot hold.

    Attributes:
        map: p, (B, C, h, w).
        leftover: |t - Up|^2 of each image's map, summed over channels and positions, (B,).
        teacher_grid: (H, W) of the map that was projected.
    """

    map: Tensor
    leftover: Tensor
    teacher_grid: Grid

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        if self.map.ndim != 4 or self.leftover.shape != self.map.shape[:1]:
            raise ValueError(
                f"a projected target is a map (B, C, h, w) and its leftover (B,), "
                f"got shapes {tuple(self.map.shape)} and {tuple(self.leftover.shape)}"
            )
        check_projectable(self.teacher_grid, self.student_grid)

    @property
    def student_grid(self) -> Grid:
        """(h, w) of the map."""
        return self.map.shape[-2], self.map.shape[-1]

    @property
    def elements(self) -> int:
        """Elements of one image's map on the teacher's grid: C * H * W, what means are taken over."""
        return self.map.shape[1] * self.teacher_grid[0] * self.teacher_grid[1]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ProjectedTarget":
        """The same target on another device, in another dtype; the leftover stays at least float32."""
        wide = torch.promote_types(dtype or self.leftover.dtype, torch.float32)
        return ProjectedTarget(self.map.to(device, dtype), self.leftover.to(device, wide), self.teacher_grid)


def is_projectable(teacher_grid: Grid, student_grid: Grid) -> bool:
    """Whether the loss compares on the teacher's grid, so that a projection can stand for the map.

    Heights alone decide, as in the published code: a teacher that is wider but not taller is itself resized.
    """
    return teacher_grid[0] > student_grid[0]


def check_projectable(teacher_grid: Grid, student_grid: Grid) -> None:
    """ValueError unless `is_projectable`."""
    if not is_projectable(teacher_grid, student_grid):
        raise ValueError(
            f"a {teacher_grid[0]}x{teacher_grid[1]} teacher map is not taller than the {student_grid[0]}x"
            f"{student_grid[1]} student grid: the loss resizes it to that grid, so keep the map as it is"
        )


@torch.no_grad()
def project(map_: Tensor, student_grid: Grid) -> ProjectedTarget:
    """Project a teacher map (B, C, H, W) onto `student_grid` (h, w): p = pinv(U) t and the leftover energy |t - Up|^2.

    Both are float32 (float64 for a float64 map). The leftover is the energy of the residual itself, since a difference
    of two float32 energies is noise. Images are projected one by one in float64 (float32 where the device has none),
    so autocast, TF32 and the batch size do not show in the result. ValueError where the loss would not resize the
    student to the teacher (see `is_projectable`). No gradient: targets are constants.
    """
    teacher_grid = (map_.shape[-2], map_.shape[-1])
    check_projectable(teacher_grid, student_grid)
    exact = torch.float32 if map_.device.type == "mps" else torch.float64
    rows, columns = _factors("inverse", student_grid, teacher_grid, map_.device, exact)
    result = torch.promote_types(map_.dtype, torch.float32)
    with torch.autocast(map_.device.type, enabled=False):
        # Tokens folded to a map are channels-last, which would cost the products and the resize twice as much.
        pairs = [_project_image(image.to(exact).contiguous(), rows, columns, result) for image in map_]
    if not pairs:
        raise ValueError(f"no images to project: the map has shape {tuple(map_.shape)}")
    maps, leftovers = zip(*pairs, strict=True)
    return ProjectedTarget(torch.stack(maps), torch.stack(leftovers), teacher_grid)


def _project_image(image: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(p, leftover) of one image's map (C, H, W); the leftover belongs to p as rounded to `dtype`."""
    projected = (rows @ (image @ columns)).to(dtype)
    residual = image - bilinear_resize(projected.to(image.dtype)[None], (image.shape[1], image.shape[2]))[0]
    return projected, residual.square().sum().to(dtype)


def gram(map_: Tensor, teacher_grid: Grid) -> Tensor:
    """Multiply maps x (B, C, h, w) of any float dtype by U^T U: the result times y, summed, is <Ux, Uy>.

    Where TF32 is allowed its rounding shows in single elements (5e-4), hardly in sums over a map.
    """
    return _separable("gram", map_, teacher_grid)


def upsample(map_: Tensor, teacher_grid: Grid) -> Tensor:
    """Apply U to maps (B, C, h, w): `bilinear_resize` as two products, three times faster on a CPU, and back again."""
    return _separable("resize", map_, teacher_grid)


def _separable(kind: str, map_: Tensor, teacher_grid: Grid) -> Tensor:
    """One matrix along the height of (B, C, h, w), one along its width."""
    # `index` makes a plain number of a size that the compiler has taken as a variable: the matrices need one.
    own, grid = (index(map_.shape[-2]), index(map_.shape[-1])), (index(teacher_grid[0]), index(teacher_grid[1]))
    rows, columns = _factors(kind, own, grid, map_.device, map_.dtype)
    product: Tensor = _Products.apply(map_, rows, columns)
    return product


class _Products(torch.autograd.Function):
    """The product rows @ map @ columns, whose backward is out of autocast's reach too.

    A compiler that meets the loss inside an autocast region would run plain products' backward in half precision.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, map_: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        with torch.autocast(map_.device.type, enabled=False):
            return rows @ map_ @ columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        with torch.autocast(gradients[0].device.type, enabled=False):
            return rows.T @ gradients[0] @ columns.T, None, None


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "resize": lambda matrix: matrix.clone(),
    "gram": lambda matrix: matrix.T @ matrix,
    "inverse": torch.linalg.pinv,
}

_FACTORS: dict[tuple[str, Grid, Grid, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def _constant_when_compiled(function: Made) -> Made:
    """What `torch.compiler.assume_constant_result` does, which imports the whole compiler for it: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_when_compiled
def _factors(
    kind: str, student_grid: Grid, teacher_grid: Grid, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """U, or what `_KINDS` makes of it, as a factor from the left and one from the right, made in float64.

    Kept on their device: copying them there at each step would stall the queue. Two tensors also for square grids: the
    compiler refuses one as two arguments.
    """
    key = (kind, student_grid, teacher_grid, device, dtype)
    if key not in _FACTORS:
        # A constant first made in an evaluation would otherwise be an inference tensor, which no training may save.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            rows, columns = (
                _KINDS[kind](resize_matrix(own, other)) for own, other in zip(student_grid, teacher_grid, strict=True)
            )
            _FACTORS[key] = rows.to(device, dtype), columns.T.contiguous().to(device, dtype)
    return _FACTORS[key]


Target = Tensor | ProjectedTarget


class TargetMaps(LevelMaps[Target]):
    """One teacher's levels as maps (B, C, H, W) or as their projections, in the order of its blocks.

    `FeatureMaps` serves as well where every level is a full map: the losses take either.
    """


Targets = FeatureMaps | TargetMaps


def check_teachers(student: Mapping[str, FeatureMaps], targets: Mapping[str, Targets]) -> None:
    """UsageError unless both hold the same teachers with as many levels, images and channels each."""
    if set(student) != set(targets) or not targets:
        raise UsageError(
            f"the student answers to teachers {sorted(student)} but there are targets of {sorted(targets)}; "
            "name the same teachers for both"
        )
    for teacher, maps in student.items():
        check_levels(teacher, maps, targets[teacher])


def check_levels(teacher: str, student: FeatureMaps, targets: Targets) -> None:
    """UsageError unless both have as many levels, and each level as many images and channels."""
    if len(student) != len(targets):
        raise UsageError(
            f"{teacher}: the student has levels {student.levels} but the targets {targets.levels}; "
            "they are paired in order, so name as many for both"
        )
    for name, map_, target in zip(targets.names, student, targets, strict=True):
        full = target.map if isinstance(target, ProjectedTarget) else target
        if map_.shape[:2] != full.shape[:2]:
            raise UsageError(
                f"{teacher} {name}: the student's map is {tuple(map_.shape)} and the target {tuple(full.shape)} "
                "(images, channels, height, width); give the student aligners to the teacher's width"
            )
        if isinstance(target, ProjectedTarget) and map_.shape != full.shape:
            raise UsageError(
                f"{teacher} {name}: the target was projected onto a {full.shape[2]}x{full.shape[3]} grid but the "
                f"student's is {map_.shape[2]}x{map_.shape[3]}; extract for this student, or with grid: native"
            )
