"""One job, in a worker: decode a block's views once, run every teacher that needs them, encode, write, record."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pipeline.cache.column_codec import Encoded, LevelFidelity
from pipeline.cache.lease import LeaseLostError
from pipeline.cache.records import Absent
from pipeline.cache.writer import BlockJob
from pipeline.extract.plan import Job
from pipeline.extract.streams import Clock, DecodedBatch, HostCopy, StageSeconds, WriteBehind, to_host
from pipeline.extract.worker import (
    ExtractionRun,
    LoadedTeacher,
    StoppedError,
    WorkerContext,
    surroundings,
    worker_context,
)
from sak.errors import SakError
from sak.features import FeatureMaps
from sak.teachers import Teacher

# Pixels to a teacher's features on the device, whatever memory it has.


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
    there = pixels.to(device, non_blocking=True)
    return there.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


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
class BlockFailure:
    """An error that ends the run, as its line and exit code: exceptions do not all survive the way home."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class BlockOutcome:
    """What became of a job, by teacher: `done` here, `recorded` by another writer before, `held` by another now."""

    job: Job
    done: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    images: int = 0
    nbytes: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[Absent, ...] = ()
    seconds: float = 0.0
    stages: StageSeconds = field(default_factory=StageSeconds)
    batch_size: int = 0
    worker: str = ""
    stopped: bool = False
    failure: BlockFailure | None = None


def extract_block(run: ExtractionRun, job: Job) -> BlockOutcome:
    """Write one block for every teacher of `job` whose lease can be had; errors of ours come home in the outcome."""
    try:
        context = worker_context(run)
        with context.lane(), ExitStack() as stack:
            return _BlockWork(context, job, stack).outcome()
    except StoppedError:
        return BlockOutcome(job, stopped=True)
    except SakError as error:
        return BlockOutcome(job, failure=BlockFailure(str(error), error.exit_code))


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
        for level, found in fidelity.items():
            self.fidelity[level] = self.fidelity[level] + found if level in self.fidelity else found


class _BlockWork:
    def __init__(self, context: WorkerContext, job: Job, stack: ExitStack) -> None:
        self._context, self._job, self._stack = context, job, stack
        self._clock = Clock(context.device)
        self._parts: dict[str, _Part] = {}
        self._recorded: list[str] = []
        self._held: list[str] = []
        self._absent: list[Absent] = []
        self._images = 0
        self._start = time.perf_counter()

    def outcome(self) -> BlockOutcome:
        """Do the work."""
        for name in self._job.teachers:
            self._lease(name)
        if self._parts:
            with WriteBehind() as behind:
                for batch in self._batches():
                    self._context.check_stop()
                    self._absent.extend(batch.absent)
                    self._images += len(batch)
                    self._extract(batch, behind)
                with self._clock.wait("write"):
                    behind.drain()
        done = self._finish()
        return BlockOutcome(
            self._job,
            done=tuple(done),
            recorded=tuple(self._recorded),
            held=tuple(self._held),
            images=self._images,
            nbytes=done,
            absent=tuple(self._absent),
            seconds=time.perf_counter() - self._start,
            stages=self._clock.total(),
            batch_size=self._context.batch_size,
            worker=_worker_name(),
        )

    def _lease(self, name: str) -> None:
        """Begin one teacher's part, where no other writer has it."""
        self._context.check_stop()
        loaded, job = self._context.teacher(name), self._job
        lease = loaded.column.lease(job.view, job.block, limit=job.stop)
        if lease is not None:
            self._stack.enter_context(lease)
            block = self._stack.enter_context(loaded.column.write(lease, job.view, job.block))
            self._parts[name] = _Part(loaded, block, job.left_out(name))
            return
        record = loaded.column.column.record(job.view, job.block)
        (self._recorded if record is not None and record.covers(job.samples) else self._held).append(name)

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
            for name, each in encoded.items():
                part = self._parts[name]
                part.add(each.fidelity)
                write = partial(part.append, part.needed(piece), to_host(each.arrays))
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
        done = {}
        for name, part in self._parts.items():
            try:
                with self._clock.wait("write"):
                    record = part.block.finish(
                        fidelity=part.fidelity,
                        facts=self._facts(),
                        calibration=part.loaded.digest,
                        absent=[each for each in self._absent if each.sample not in part.left_out],
                        elsewhere=sorted(part.left_out),
                    )
            except LeaseLostError:
                self._held.append(name)
                continue
            done[name] = record.nbytes
        return done

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
