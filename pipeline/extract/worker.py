"""A worker process: it loads its teachers once a run and keeps them, with index, decoding threads and codecs.

`WorkerContext` is what stays in the process between the jobs of a run. `identify` finds out what a spec's teacher is
(weights, width, grid), which its column's key needs; the cache remembers it, so that large weights are read once.
"""

import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import torch

from pipeline.cache.calibration import Calibration
from pipeline.cache.column_codec import ColumnCodec
from pipeline.cache.folder import Cache, CacheFolder
from pipeline.cache.key import canonical_json
from pipeline.cache.manifest import CacheError, Manifest, seal, unseal
from pipeline.cache.spec import CacheSpec, TeacherSpec
from pipeline.cache.stores.base import DamageError
from pipeline.cache.writer import WritableColumn
from pipeline.cluster import BLOCKS_IN_FLIGHT, Cluster
from pipeline.data.live_teachers import build_from_manifest
from pipeline.extract.overlap import ViewSource
from pipeline.images.access import ImageAccess
from pipeline.images.index import ShardIndex
from pipeline.images.views import ViewPolicy
from pipeline.progress import Say, quiet
from pipeline.storage import MissingFileError
from sak import __version__
from sak.errors import SakError
from sak.teachers import Teacher, TeacherRecipe, build_teacher
from sak.teachers.registry import find_teacher, published_file

_IDLE_SECONDS = 60.0  # then the run is over: another main process died, or the user's cluster serves the next
_LIBRARIES = ("timm", "open_clip_torch", "segment_anything", "torch")


@dataclass(frozen=True)
class ExtractionRun:
    """All that a worker must know of a run; small, and sent with every job.

    `cache` are its folders, foremost first; `data` is where the images are now, `data_key` names their index.
    """

    cache: tuple[str, ...]
    data: str
    data_key: str
    manifests: Mapping[str, Manifest]
    device: str
    batch_size: int
    decode_threads: int
    lease_seconds: float
    id: str = field(default_factory=lambda: uuid4().hex[:12])

    @classmethod
    def on(
        cls, cluster: Cluster, cache: Cache, index: ShardIndex, manifests: Mapping[str, Manifest], **more: Any
    ) -> "ExtractionRun":
        """A run of the cluster's workers; `more` are the batch size and the seconds of a lease."""
        return cls(
            cache=tuple(layer.location.url for layer in cache.layers),
            data=index.data,
            data_key=index.data_key(),
            manifests=manifests,
            device=cluster.device,
            decode_threads=cluster.threads,
            **more,
        )


class StoppedError(SakError):
    """The run was asked to stop; what this job had done is dropped."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher on the device, its column, and the codec of the column's calibration once there is one."""

    teacher: Teacher
    manifest: Manifest
    cache: Cache
    lease_seconds: float

    @cached_property
    def column(self) -> WritableColumn:
        """Its column, begun by whoever asks first: measuring does not."""
        return WritableColumn.create_or_open(self.cache, self.manifest, lease_seconds=self.lease_seconds)

    @cached_property
    def calibration(self) -> Calibration:
        """The column's calibration; CacheError before it was published."""
        published = self.column.calibration()
        if published is None:
            raise CacheError(f"{self.column.column.location}: blocks before a calibration; run the extraction again")
        return published

    @cached_property
    def codec(self) -> ColumnCodec:
        """Its codecs, on the teacher's device."""
        return ColumnCodec(self.manifest, self.calibration).to(self.teacher.mean.device)


class WorkerContext:
    """One per process and run; made by the first job."""

    def __init__(self, run: ExtractionRun) -> None:
        self.run = run
        self.device = torch.device(run.device)
        self.batch_size = run.batch_size
        self.cache = Cache(tuple(CacheFolder.open(folder) for folder in run.cache))
        self.forward_turn = threading.Lock()
        self.used = time.monotonic()
        self._load = threading.Lock()
        self._teachers: dict[str, LoadedTeacher] = {}
        self._decoders = ThreadPoolExecutor(run.decode_threads, "decode")
        self._lanes: SimpleQueue[torch.cuda.Stream | None] = SimpleQueue()
        for _ in range(BLOCKS_IN_FLIGHT):
            self._lanes.put(torch.cuda.Stream(self.device) if self.device.type == "cuda" else None)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # a spec that says fp32 means it

    @cached_property
    def index(self) -> ShardIndex:
        """The shard index, its images where the run says they are."""
        index = self.cache.index(self.run.data_key)
        return index if index.data == self.run.data else index.relocated(self.run.data)

    @cached_property
    def source(self) -> ViewSource:
        """The images of the run."""
        manifest = next(iter(self.run.manifests.values()))  # one spec made them all: their views are the same
        policy, access = ViewPolicy(**manifest.document["views"]), ImageAccess(self.index, verify=True)
        return ViewSource(access, policy, self._decoders, pin=self.device.type == "cuda")

    def teacher(self, name: str) -> LoadedTeacher:
        """A teacher, loaded by the first job that asks."""
        with self._load:
            if name not in self._teachers:
                manifest = self.run.manifests[name]
                teacher = build_from_manifest(manifest, str(self.device))
                self._teachers[name] = LoadedTeacher(teacher, manifest, self.cache, self.run.lease_seconds)
            return self._teachers[name]

    @contextmanager
    def lane(self) -> Iterator[None]:
        """A place for one block in flight; on CUDA with a stream of its own, so that blocks do not wait for another."""
        stream = self._lanes.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self.used = time.monotonic()
            self._lanes.put(stream)

    def is_idle(self) -> bool:
        """Whether no block has been in flight for so long that the run must be over."""
        return self._lanes.qsize() == BLOCKS_IN_FLIGHT and time.monotonic() - self.used > _IDLE_SECONDS

    def halve_batch(self, failed: int) -> bool:
        """After a batch of `failed` images did not fit: use smaller ones from now on; False where one is too many."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_size = min(self.batch_size, max(1, failed // 2))
        return failed > 1

    def check_stop(self) -> None:
        """StoppedError once the run was asked to stop."""
        if self.run.id in _STOPPED:
            raise StoppedError("the run was asked to stop")

    def close(self) -> None:
        """End the threads, let go of the teachers."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._teachers.clear()


_CONTEXTS: dict[str, WorkerContext] = {}
_STOPPED: set[str] = set()
_MAKING = threading.Lock()  # the first jobs of a run begin at the same time


def worker_context(run: ExtractionRun) -> WorkerContext:
    """This process's context of a run; those of runs whose main process went away are let go."""
    with _MAKING:
        if run.id not in _CONTEXTS:
            for name in [name for name, old in _CONTEXTS.items() if old.is_idle()]:
                _CONTEXTS.pop(name).close()
            _CONTEXTS[run.id] = WorkerContext(run)
        _CONTEXTS[run.id].used = time.monotonic()
        return _CONTEXTS[run.id]


def request_stop(run_id: str) -> None:
    """Ask the jobs of a run in this process to stop at their next batch."""
    _STOPPED.add(run_id)


def forget_run(run_id: str) -> None:
    """Let go of a run that is over: memory of the device, threads."""
    context = _CONTEXTS.pop(run_id, None)  # in one step: the next run's first job may remove it as idle meanwhile
    if context is not None:
        context.close()


def surroundings(device: str) -> dict[str, object]:
    """Versions and hardware of this process, for records and reports."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else platform.processor() or platform.machine()
    libraries = ("timm", "open_clip_torch", "segment-anything", "torchvision", "pillow", "numpy", "numcodecs", "zarr")
    return {
        "sak": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # says which CUDA it was built for
        **{library: version(library) for library in (*libraries, "distributed")},
        "device": f"{kind} {name}",
        "host": platform.node(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class IdentifiedTeacher:
    """A spec's teacher with its identity: what a column's key and manifest need to know.

    `width` and `grid` (height, width) are those of its own maps.
    """

    recipe: TeacherRecipe
    width: int
    grid: tuple[int, int]


def build_from_spec(spec: CacheSpec, name: str, device: str = "cpu") -> Teacher:
    """The teacher called `name` in a spec."""
    return build_teacher(spec.recipe(name), image_size=spec.views.size, device=device)


def identify(cache: CacheFolder, spec: CacheSpec, name: str, say: Say = quiet) -> IdentifiedTeacher:
    """A spec's teacher, identified; its weights are read (and that is said) where the cache does not know their file.

    SakError where they cannot be had.
    """
    drawn = build_from_spec(spec, name, "meta")
    known = _known_as(spec.teachers[name])
    digest = _remembered_digest(cache, known) if known else None
    if digest is None:
        say(f"Reading the weights of {name}")
        digest = build_from_spec(spec, name).weights_sha256
        if known:
            cache.location.write_bytes(_path_of(known), seal({**known, "weights_sha256": digest}))
    return IdentifiedTeacher(replace(drawn.recipe, weights_sha256=digest), drawn.width, drawn.grid())


def _remembered_digest(cache: CacheFolder, known: dict[str, Any]) -> str | None:
    """From the cache's list of known weights; None where they are not there, or the entry is damaged."""
    path = _path_of(known)
    try:
        return str(unseal(cache.location.read_bytes(path), cache.location.at(path))["weights_sha256"])
    except (MissingFileError, DamageError):
        return None


def _path_of(known: dict[str, Any]) -> str:
    return f"identities/{sha256(canonical_json(known).encode()).hexdigest()[:32]}.json"


def _known_as(teacher: TeacherSpec) -> dict[str, Any] | None:
    """What stands for the weights: their file by path, size and time of change, or the seed; None if nothing does."""
    if teacher.model.startswith("custom:"):
        return None
    file: list[Any] | None = None
    if not teacher.weights.startswith("random"):
        path = _weights_file(teacher)
        if path is None or not path.is_file():
            return None
        status = path.resolve().stat()
        file = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return {
        "model": teacher.model,
        "weights": teacher.weights,
        "overrides": teacher.overrides,
        "file": file,
        "libraries": [version(library) for library in _LIBRARIES],
    }


def _weights_file(teacher: TeacherSpec) -> Path | None:
    if teacher.weights != "pretrained":
        return Path(teacher.weights).expanduser()
    row = find_teacher(teacher.model)
    return published_file(row).local() if row else None
