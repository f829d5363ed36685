"""What a cache takes before one exists: bytes of a spec's columns, operations of its teachers, the disk's read rate."""

import os
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pipeline.cache.projection import Reduction
from pipeline.cache.quantizers import QUANTIZERS
from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.cache.stores.base import ROW, ArrayLayout
from pipeline.storage.location import explain
from sak.teachers.recipe import TeacherFacts, is_sam

Grid = tuple[int, int]

_SUM, _ZARR_ENTRY, _TAR_ENTRY = 4, 16, 24  # bytes
_SAM_WINDOW = 14
_SAM_GLOBAL_BLOCKS = 4
_STUDENT_WIDTH, _STUDENT_DEPTH = 768, 12
_ADAPTER_PATH = 13 / 288  # 13 adapters of d^2 operations a token and teacher, beside 12 blocks of 24 d^2

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
    arrays = [ArrayLayout(f"l00/{array.name}", array.dtype, array.shape, array.fill) for array in stored]
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
    from pipeline.cache.stores.tar_store import BLOCK, END, MemberHeaders

    members = [MemberHeaders(array, 0) for array in arrays]
    headers = sum(
        BLOCK + member.bytes + member.padding - array.nbytes for member, array in zip(members, arrays, strict=True)
    )
    return headers + len(arrays) * _TAR_ENTRY + (len(END) + _SUM) / block


def forward_operations(facts: TeacherFacts, *, windowed: bool = False) -> float:
    """Multiply-adds times two of a ViT's blocks for one image; SAM's are `windowed`, all but four."""
    tokens = prod(facts.grid)
    everywhere = min(_SAM_GLOBAL_BLOCKS, facts.depth) if windowed else facts.depth
    seen = everywhere * tokens + (facts.depth - everywhere) * min(tokens, _SAM_WINDOW**2)
    return facts.depth * 24 * tokens * facts.width**2 + 4 * seen * tokens * facts.width


def step_ratio(spec: CacheSpec, facts: Mapping[str, TeacherFacts]) -> float:
    """A training step with all teachers live over one without, for a B student on the spec's student grid.

    4.1 for the paper's B teachers at 384, 11.1 for L. A step of the student is its forward three times over.
    """
    student = TeacherFacts(_STUDENT_WIDTH, _STUDENT_DEPTH, spec.grid)
    step = 3 * forward_operations(student) * (1 + _ADAPTER_PATH * len(facts))
    teachers = sum(forward_operations(fact, windowed=is_sam(spec.teachers[name].model)) for name, fact in facts.items())
    return (step + teachers) / step


def read_rate(folder: Path, *, sample_bytes: int = 1 << 20, total_bytes: int = 256 << 20) -> float:
    """Bytes per second of one thread's random reads of `sample_bytes`, after dropping the file from the page cache.

    Writes `total_bytes` into a scratch file in `folder`, and removes it. Where the file system has no disk (tmpfs) that
    is memory's speed, as training will have it there. StorageError where the folder cannot be written.
    """
    scratch = folder / f".read-rate.{os.getpid()}.part"
    try:
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(descriptor, total_bytes)
            return _read_at_random(descriptor, sample_bytes, total_bytes)
        finally:
            os.close(descriptor)
            scratch.unlink()
    except OSError as error:
        raise explain(error, str(folder)) from error


def _fill(descriptor: int, total: int) -> None:
    piece = random.Random(0).randbytes(1 << 20)
    written = 0
    while written < total:
        written += os.write(descriptor, piece[: total - written])
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_at_random(descriptor: int, size: int, total: int) -> float:
    offsets = list(range(0, total - size + 1, size)) or [0]
    random.Random(1).shuffle(offsets)
    buffer = bytearray(min(size, total))
    begin = time.perf_counter()
    read = sum(os.preadv(descriptor, [buffer], offset) for offset in offsets)
    return read / (time.perf_counter() - begin)


@dataclass(frozen=True)
class ReadRate:
    """What a folder offers: random reading by one thread, in bytes a second, and free bytes; named as in `Rates`."""

    read_bytes_per_second: float
    free_bytes: int


def probe(cache: Path) -> ReadRate:
    """Measure the disk that will hold a cache at `cache`, which need not exist; its nearest parent is measured then."""
    folder = cache.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return ReadRate(read_rate(folder), shutil.disk_usage(folder).free)
