"""One job, in a worker: decode a block's views once, run every teacher that needs them, encode, write, record.

`answered` brings the errors of a worker's task home.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from pipeline.cache.column_codec import Encoded, LevelFidelity
from pipeline.cache.lease import LeaseLostError
from pipeline.cache.records import Absent, record_name
from pipeline.cache.writer import BlockJob
from pipeline.extract.overlap import Clock, DecodedBatch, HostCopy, StageSeconds, WriteBehind, to_host
from pipeline.extract.plan import Job
from pipeline.extract.worker import ExtractionRun, LoadedTeacher, WorkerContext, surroundings, worker_context
from sak.errors import SakError
from sak.features import FeatureMaps
from sak.teachers import Teacher

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


class DoesNotFitError(SakError):
    """A single image is too much for the device."""

    def __init__(self, teachers: Iterable[str], device: torch.device) -> None:
        """Name the teachers that were asked for and the device."""
        super().__init__(
            f"{', '.join(teachers)}: one image does not fit {device}; extract fewer teachers at a time, "
            "choose precision bf16, or a device with more memory"
        )


def to_images(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 (n, H, W, 3) to what teachers take, float32 (n, 3, H, W) in [0, 1] on the device."""
    on_device = pixels.to(device, non_blocking=True)
    return on_device.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def forward_in_pieces(teacher: Teacher, images: Tensor) -> FeatureMaps:
    """A teacher's features of a batch, in halves where the device has no memory for it whole; DoesNotFitError."""
    try:
        return teacher(images)
    except torch.OutOfMemoryError as error:
        if len(images) < 2:
            raise DoesNotFitError([teacher.name], images.device) from error
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(images) // 2
    first, second = (forward_in_pieces(teacher, part) for part in (images[:half], images[half:]))
    return FeatureMaps(first.levels, tuple(torch.cat(pair) for pair in zip(first.maps, second.maps, strict=True)))


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What a task gave; or nothing, and the line and exit code of the error that ends the run."""

    value: Value | None = None
    failure: str | None = None
    exit_code: int = 0


def answered(task: Callable[Arguments, Value]) -> Callable[Arguments, Answer[Value]]:
    """Have the errors of a worker's task come home in its answer.

    Not all exceptions survive the way between processes, and Dask runs a task again that raises one.
    """

    @wraps(task)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer[Value]:
        try:
            return Answer(task(*arguments, **options))
        except SakError as error:
            return Answer(failure=str(error), exit_code=error.exit_code)

    return run


@dataclass(frozen=True)
class BlockReport:
    """One block as this run wrote it; `teachers` are those whose part was written here."""

    name: str
    teachers: tuple[str, ...]
    images: int
    seconds: float
    stages: StageSeconds
    batch_size: int
    worker: str


@dataclass(frozen=True)
class BlockOutcome:
    """What became of a job: bytes by teacher that was written, and the teachers `held` by another writer now.

    Teachers that are in neither were recorded by another writer before.
    """

    job: Job
    report: BlockReport
    nbytes: Mapping[str, int]
    held: tuple[str, ...]
    absent: tuple[Absent, ...]


@answered
def extract_block(run: ExtractionRun, job: Job) -> BlockOutcome:
    """Write one block for every teacher of `job` whose lease can be had."""
    context = worker_context(run)
    with context.lane(), ExitStack() as stack:
        return _BlockWork(context, job, stack).outcome()


@dataclass
class _Part:
    """One teacher's part of the block."""

    loaded: LoadedTeacher
    block: BlockJob
    left_out: frozenset[int]
    fidelity: dict[int, LevelFidelity] = field(default_factory=dict)

    def needed(self, batch: DecodedBatch) -> DecodedBatch:
        """The batch without the samples that lie elsewhere; mostly the batch itself."""
        rows = [row for row, sample in enumerate(batch.samples) if sample not in self.left_out]
        return batch if len(rows) == len(batch) else batch.rows(rows)

    def append(self, batch: DecodedBatch, copy: HostCopy) -> None:
        self.block.append(batch.samples, copy.arrays(), batch.views, batch.crcs)

    def add(self, fidelity: Mapping[int, LevelFidelity]) -> None:
        for level, more in fidelity.items():
            self.fidelity[level] = self.fidelity[level] + more if level in self.fidelity else more


class _BlockWork:
    def __init__(self, context: WorkerContext, job: Job, stack: ExitStack) -> None:
        self._context, self._job, self._stack = context, job, stack
        self._clock = Clock(context.device)
        self._parts: dict[str, _Part] = {}
        self._held: list[str] = []
        self._absent: list[Absent] = []
        self._images = 0
        self._start = time.perf_counter()

    def outcome(self) -> BlockOutcome:
        """Do the work."""
        for name in self._job.teachers:
            self._lease(name)
        if self._parts:
            with closing(WriteBehind()) as behind:
                for batch in self._batches():
                    self._context.check_stop()
                    self._absent.extend(batch.absent)
                    self._images += len(batch)
                    self._extract(batch, behind)
                with self._clock.wait("write"):
                    behind.drain()
        nbytes = self._finish()
        report = BlockReport(
            record_name(self._job.view, self._job.block),
            tuple(nbytes),
            self._images,
            round(time.perf_counter() - self._start, 3),
            self._clock.total(),
            self._context.batch_size,
            _worker_name(),
        )
        return BlockOutcome(self._job, report, nbytes, tuple(self._held), tuple(self._absent))

    def _lease(self, name: str) -> None:
        """Begin one teacher's part, where no other writer has it."""
        self._context.check_stop()
        loaded, job = self._context.teacher(name), self._job
        lease = loaded.column.lease(job.view, job.block, limit=job.stop)
        if lease is None:
            record = loaded.column.column.record(job.view, job.block)
            if record is None or not record.covers(job.samples):
                self._held.append(name)
            return
        self._stack.enter_context(lease)
        block = self._stack.enter_context(loaded.column.write(lease, job.view, job.block))
        self._parts[name] = _Part(loaded, block, job.left_out(name))

    def _batches(self) -> Iterator[DecodedBatch]:
        unneeded = frozenset.intersection(*(part.left_out for part in self._parts.values()))
        samples = [sample for sample in self._job.samples if sample not in unneeded]
        batches = self._context.source.batches(samples, self._job.view, self._context.batch_size)
        while True:
            with self._clock.wait("decode"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _extract(self, batch: DecodedBatch, behind: WriteBehind) -> None:
        """Features of one batch; where it does not fit the device, in halves, and so for the rest of the run."""
        pieces = _pieces(batch, self._context.batch_size)
        while pieces:
            piece = pieces.pop(0)
            try:
                encoded = self._forward(piece)
            except torch.OutOfMemoryError as error:
                if not self._context.halve_batch(len(piece)):
                    raise DoesNotFitError(self._parts, self._context.device) from error
                pieces = _pieces(piece, self._context.batch_size) + pieces
                continue
            for name, features in encoded.items():
                part = self._parts[name]
                part.add(features.fidelity)
                write = partial(part.append, part.needed(piece), to_host(features.arrays))
                with self._clock.wait("write"):
                    behind.submit(write)

    def _forward(self, batch: DecodedBatch) -> dict[str, Encoded]:
        """Every teacher's encoded features of one batch, on the device."""
        if not len(batch):
            return {}
        images = to_images(batch.pixels, self._context.device)
        encoded = {}
        for name, part in self._parts.items():
            needed = part.needed(batch)
            if not len(needed):
                continue
            mine = images if needed is batch else to_images(needed.pixels, self._context.device)
            with self._turn(), self._clock.work("forward"):
                features = part.loaded.teacher(mine)
            with self._clock.work("encode"):
                encoded[name] = part.loaded.codec.encode(features, needed.keys)
        return encoded

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Forwards of the blocks in flight run one after the other."""
        with self._clock.wait("turn"):
            self._context.forward_turn.acquire()
        try:
            yield
        finally:
            self._context.forward_turn.release()

    def _finish(self) -> dict[str, int]:
        """Publish every part; returns the bytes of each. A part whose lease was lost is left to who has it."""
        nbytes = {}
        for name, part in self._parts.items():
            try:
                with self._clock.wait("write"):
                    record = part.block.finish(
                        fidelity=part.fidelity,
                        facts=self._facts(),
                        calibration=part.loaded.calibration.digest,
                        absent=[bad for bad in self._absent if bad.sample not in part.left_out],
                        elsewhere=sorted(part.left_out),
                    )
                nbytes[name] = record.nbytes
            except LeaseLostError:
                self._held.append(name)
        return nbytes

    def _facts(self) -> dict[str, object]:
        return {
            **surroundings(self._context.run.device),
            "batch_size": self._context.batch_size,
            "batch_size_asked": self._context.run.batch_size,
            "seconds": round(time.perf_counter() - self._start, 3),
            "stages": {name: round(value, 3) for name, value in vars(self._clock.total()).items()},
        }


def _pieces(batch: DecodedBatch, size: int) -> list[DecodedBatch]:
    """The batch in parts of at most `size`."""
    if len(batch) <= size:
        return [batch]
    return [batch.rows(range(start, min(start + size, len(batch)))) for start in range(0, len(batch), size)]


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:  # not inside a Dask worker: a test, or a benchmark
        return "here"
