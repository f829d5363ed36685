"""A pool of scenes to train the demo's own teachers on: rendered once into a scratch folder, read by every training.

pool-<seed>-<size>px/chunk-0003.npy   scenes 192 to 255, one structured record each; mapped, never read whole

The scenes come from the stream `training`, which no demo data ever uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.data import encode
from pipeline.demo.data.workers import scene_workers
from pipeline.demo.scenes.compose import render_scene
from pipeline.demo.scenes.interiors import KINDS
from pipeline.demo.things.classes import SUBJECTS
from pipeline.progress import Update
from pipeline.storage.local import fsync_folder, make_folder, scratch_beside, write_durably
from sak.errors import SakError, UsageError

CHUNK = 64
"""Scenes a file; what an interrupted rendering loses at most, for each process."""

STREAM = "training"
SCENE_KINDS = (*KINDS, "street", "park", "field")

FREE = 3
"""Every third scene is free, with the people and clutter of the downstream scenes; the others show one subject."""


@dataclass(frozen=True)
class PoolSpec:
    """What decides a pool: seed, number of scenes and their size in pixels (squares)."""

    seed: int = 0
    scenes: int = 6144
    size: int = 160

    def __post_init__(self) -> None:
        """Refuse a pool that cannot be."""
        if self.scenes < 1 or self.scenes % CHUNK:
            raise UsageError(f"a pool holds a multiple of {CHUNK} scenes, got {self.scenes}")

    @property
    def key(self) -> str:
        """Names the folder."""
        return f"pool-{self.seed}-{self.size}px"

    @property
    def record(self) -> np.dtype[np.void]:
        """One scene: see `RenderedScene`; `subject` is a row of SUBJECTS (-1: none), `kind` of SCENE_KINDS."""
        shape = (self.size, self.size)
        return np.dtype(
            [
                ("rgb", "u1", (*shape, 3)),
                ("semantic", "u1", shape),
                ("parts", "u1", shape),
                ("instances", "<u2", shape),
                ("subject", "<i2"),
                ("kind", "u1"),
            ]
        )


def subject_of(index: int) -> str | None:
    """The subject that scene `index` of a pool is aimed at, every class equally often; None for a free scene."""
    if index % FREE == FREE - 1:
        return None
    return SUBJECTS[(index - index // FREE) % len(SUBJECTS)]


def chunk_name(number: int) -> str:
    """The file name of a chunk."""
    return f"chunk-{number:04d}.npy"


def render_chunk(folder: Path, spec: PoolSpec, number: int) -> int:
    """Render one chunk into its file, which appears whole; returns its number."""
    records = np.zeros(CHUNK, spec.record)
    for row in range(CHUNK):
        index = number * CHUNK + row
        subject = subject_of(index)
        scene = render_scene(spec.seed, spec.size, stream=STREAM, index=index, subject=subject)
        for name in ("rgb", "semantic", "parts", "instances"):
            records[row][name] = getattr(scene, name)
        records[row]["subject"] = -1 if subject is None else SUBJECTS.index(subject)
        records[row]["kind"] = SCENE_KINDS.index(scene.kind)
    target = folder / chunk_name(number)
    scratch = scratch_beside(target)
    write_durably(scratch, encode.npy(records))
    scratch.replace(target)
    fsync_folder(folder)
    return number


def render_pool(
    root: Path, spec: PoolSpec, *, processes: int | None = None, progress: Update | None = None
) -> "ScenePool":
    """Render what is missing of a pool under `root` and open it; interrupted, it goes on where it stopped."""
    folder = root / spec.key
    make_folder(folder)
    pending = [number for number in range(spec.scenes // CHUNK) if not (folder / chunk_name(number)).is_file()]
    total, done = spec.scenes // CHUNK, spec.scenes // CHUNK - len(pending)

    def report(count: int, of: int) -> None:
        del of
        if progress is not None:
            progress((done + count) * CHUNK, total * CHUNK, "scenes to train on")

    with scene_workers(processes, len(pending) * CHUNK, report) as workers:
        for _ in workers.in_order(partial(render_chunk, folder, spec), pending):
            pass
    return ScenePool.open(root, spec)


@dataclass(frozen=True)
class ScenePool:
    """A rendered pool: record arrays mapped into memory."""

    spec: PoolSpec
    chunks: Sequence[NDArray[np.void]]

    @classmethod
    def open(cls, root: Path, spec: PoolSpec) -> "ScenePool":
        """The pool under `root`; SakError where a chunk is missing or is something else."""
        folder = root / spec.key
        return cls(spec, [_mapped(folder / chunk_name(number), spec) for number in range(spec.scenes // CHUNK)])

    def __len__(self) -> int:
        """Scenes."""
        return self.spec.scenes

    def __getitem__(self, index: int) -> np.void:
        """The record of scene `index`."""
        record: np.void = self.chunks[index // CHUNK][index % CHUNK]
        return record

    def subjects(self) -> NDArray[np.int64]:
        """Every scene's subject (n,), -1 for free scenes."""
        return np.concatenate([chunk["subject"] for chunk in self.chunks]).astype(np.int64)


def _mapped(path: Path, spec: PoolSpec) -> NDArray[np.void]:
    try:
        records: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SakError(f"{path} is no chunk of a scene pool ({error}); remove it and run the command again") from error
    if records.dtype != spec.record or records.shape != (CHUNK,):
        raise SakError(f"{path} holds another kind of pool; remove its folder and run the command again")
    return records
