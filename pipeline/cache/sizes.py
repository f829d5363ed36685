"""How many bytes a spec's columns take, before one exists: by teacher and level, payload and what the store adds."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from pipeline.cache.layout import ArrayLayout
from pipeline.cache.quantizers import QUANTIZERS
from pipeline.cache.reduction import Reduction
from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.cache.stored_views import ROW
from sak.teachers.recipe import TeacherFacts

Grid = tuple[int, int]

_SUM, _ZARR_ENTRY, _TAR_ENTRY = 4, 16, 24

CODEC_RATIOS: Mapping[str, Mapping[str, float]] = {
    "zstd": {"float16": 1.08, "bfloat16": 1.08, "int8": 1.08, "int4": 1.0},
    "blosc": {"float16": 1.08, "bfloat16": 1.08, "int8": 1.08, "int4": 1.0},
    "pcodec": {"float16": 1.16, "bfloat16": 1.16, "int8": 1.0, "int4": 1.0},
}
"""What lossless codecs gain on features of ViTs, measured; an expectation, not a promise."""


@dataclass(frozen=True)
class ColumnSize:
    """One teacher's column, in bytes of one sample and view.

    Attributes:
        grid, stored_grid: (height, width) of the teacher's maps, and of those that are stored.
        levels: bytes of each level's arrays as encoded, by block number; all levels are alike.
        arrays: how many arrays all levels have.
        overhead: what the store adds: checksums, indices, tar headers, views.
        compressed: what the values are expected to shrink by under the spec's codec.
    """

    teacher: str
    model: str
    random: bool
    width: int
    grid: Grid
    stored_grid: Grid
    reduction: str
    encoding: str
    levels: dict[int, int]
    arrays: int
    overhead: float
    compressed: float

    @property
    def payload(self) -> int:
        """Bytes of all levels as encoded; what training reads of a sample."""
        return sum(self.levels.values())

    @property
    def total(self) -> float:
        """Bytes on disk."""
        return self.payload + self.overhead - self.compressed


def column_sizes(spec: CacheSpec, facts: Mapping[str, TeacherFacts]) -> tuple[ColumnSize, ...]:
    """The size of every teacher's column; `facts` by teacher name, `spec` as `load_spec` gives it."""
    return tuple(_column_size(name, teacher, spec, facts[name]) for name, teacher in spec.teachers.items())


def _column_size(name: str, teacher: TeacherSpec, spec: CacheSpec, facts: TeacherFacts) -> ColumnSize:
    reduction = Reduction(teacher.grid or "native", facts.grid, spec.grid)
    encoding, levels = teacher.encoding, teacher.levels or ()
    stored = QUANTIZERS[encoding.kind](encoding.pca or facts.width).arrays(prod(reduction.stored_grid))
    arrays = [ArrayLayout(f"l00/{name}", each.dtype, each.shape, each.fill) for name, each in stored.items()]
    if reduction.has_leftover:
        arrays.append(ArrayLayout("l00/leftover", "float32", (), float("nan")))
    ratio = CODEC_RATIOS.get(spec.codec, {}).get(encoding.kind, 1.0)
    add = _zarr_overhead if spec.format == "zarr" else _tar_overhead
    return ColumnSize(
        teacher=name,
        model=teacher.model,
        random=teacher.weights.startswith("random"),
        width=facts.width,
        grid=facts.grid,
        stored_grid=reduction.stored_grid,
        reduction=reduction.effective,
        encoding=encoding.kind + (f", PCA {encoding.pca}" if encoding.pca else ""),
        levels=dict.fromkeys(levels, sum(array.nbytes for array in arrays)),
        arrays=len(levels) * len(arrays),
        overhead=len(levels) * add(arrays, spec.samples_per_block) + ROW.itemsize,
        compressed=len(levels) * arrays[0].nbytes * (1 - 1 / ratio),
    )


def _zarr_overhead(arrays: list[ArrayLayout], block: int) -> float:
    """A checksum and an index entry for each array's chunk, and a checksum for each shard's index."""
    return len(arrays) * (_SUM + _ZARR_ENTRY + _SUM / block)


def _tar_overhead(arrays: list[ArrayLayout], block: int) -> float:
    """Headers of each array's member, filled up to whole blocks; the offset index; the tar's end.

    Keys so long that a member's name has over 100 letters take 1,024 bytes more.
    """
    from pipeline.cache.tar_store import BLOCK, END, MemberHeaders

    members = [MemberHeaders(array, 0) for array in arrays]
    headers = sum(
        BLOCK + member.bytes + member.padding - array.nbytes for member, array in zip(members, arrays, strict=True)
    )
    return headers + len(arrays) * _TAR_ENTRY + (len(END) + _SUM) / block
