"""Which batch is given to which rank, and `FeatureBatches`, which reads them ahead for training.

batches = FeatureBatches(cache, ReadingOrder(batch_size=1024, seed=0, block=cache.block))
for batch in batches:  # the rest of one epoch
    targets = batch.decode("cuda")
    batch.release()
state = batches.state  # what was consumed, for a checkpoint
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from pipeline.cache.reader.batch import BufferPool, EncodedBatch, Filled, make_buffers
from pipeline.cache.reader.feature_cache import FeatureCache, Request
from pipeline.cache.reader.process import ArraySizes, ProcessReader, read_pieces
from pipeline.cache.selection import Numbers
from pipeline.processes import usable_cores
from sak.errors import SakError, UsageError

Mask = NDArray[np.bool_]

_WINDOW_BITS = 24  # 16 million windows, and 40 bits to shuffle within one
_SPARE = 2  # batches a consumer may hold beside the one it works on
_SMALL_EPOCH = 64 << 20  # bytes that are read before a process for it would have started


@dataclass(frozen=True)
class BatchState:
    """Where reading stands: the epoch, and how many of its global batches have been consumed (never prefetched)."""

    epoch: int = 0
    batches: int = 0

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "BatchState":
        """The state that `as_dict` wrote; SakError where it is something else."""
        try:
            read = cls(int(state["epoch"]), int(state["batches"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SakError(f"not a reading state: {state!r}; it holds `epoch` and `batches`") from error
        if read.epoch < 0 or read.batches < 0:
            raise SakError(f"not a reading state: {state!r}; epoch and batches count from 0")
        return read


@dataclass(frozen=True)
class BatchPart:
    """One rank's part of a global batch: sample numbers (b,), and which of them count (b,), all but padding."""

    samples: Numbers
    mask: Mask


@dataclass(frozen=True)
class ReadingOrder:
    """How samples are put in order and cut into batches: one sequence an epoch, the same for any number of ranks.

    `batch_size` is global: rank r of R takes rows [r, r+1) * batch_size / R of every batch. Training drops the last
    partial batch (`drop_last`); validation keeps it, padded with a mask. `shuffle=False` reads in storage order.
    """

    batch_size: int
    seed: int = 0
    block: int = 512
    window: int = 16
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that cut nothing, or unequal parts."""
        if min(self.batch_size, self.block, self.window, self.ranks) < 1:
            raise UsageError(
                f"batch size, block, window and ranks must be positive, got {self.batch_size}, {self.block}, "
                f"{self.window} and {self.ranks}"
            )
        if not 0 <= self.rank < self.ranks:
            raise UsageError(f"rank {self.rank} of {self.ranks}: ranks count from 0")
        if self.batch_size % self.ranks:
            raise UsageError(
                f"a global batch of {self.batch_size} does not divide among {self.ranks} ranks; "
                f"take a multiple of {self.ranks}"
            )

    @property
    def part_size(self) -> int:
        """Samples of one rank in one batch."""
        return self.batch_size // self.ranks

    def batches(self, samples: int) -> int:
        """How many global batches `samples` samples make."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def sequence(self, samples: Numbers, epoch: int) -> Numbers:
        """All of `samples` (ascending sample numbers), each once, in the order of `epoch`."""
        if not self.shuffle or not len(samples):
            return samples
        blocks, block_of = np.unique(samples // self.block, return_inverse=True)
        position = np.empty(len(blocks), np.int64)
        position[np.argsort(_draws(blocks, self._seed("blocks", epoch)), kind="stable")] = np.arange(len(blocks))
        windows = -(-len(blocks) // self.window)
        window = (position * windows // len(blocks))[block_of].astype(np.uint64)
        draws = _draws(samples, self._seed("samples", epoch)) >> np.uint64(_WINDOW_BITS)
        return samples[np.argsort((window << np.uint64(64 - _WINDOW_BITS)) | draws, kind="stable")]

    def part(self, sequence: Numbers, number: int) -> BatchPart:
        """This rank's part of global batch `number` of a sequence; padding repeats the batch's first sample."""
        if not 0 <= number < self.batches(len(sequence)):
            raise IndexError(f"batch {number} of {self.batches(len(sequence))}")
        first = number * self.batch_size
        rows = np.arange(first + self.rank * self.part_size, first + (self.rank + 1) * self.part_size)
        mask = rows < len(sequence)
        return BatchPart(sequence[np.where(mask, rows, first)], mask)

    def _seed(self, purpose: str, epoch: int) -> np.uint64:
        text = f"sak reading order 1: {purpose}, seed {self.seed}, epoch {epoch}"
        return np.uint64(int.from_bytes(sha256(text.encode()).digest()[:8], "little"))


def _draws(numbers: Numbers, seed: np.uint64) -> NDArray[np.uint64]:
    """One uniform 64-bit draw for each number: splitmix64's output function (Steele, Lea and Flood, 2014)."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + seed
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class FeatureBatches:
    """Iterating gives what is left of the current epoch; the next iteration the next epoch.

    `ahead` batches are read before they are asked for, by `processes` processes in turn; with 0 a batch is read when it
    is asked for. By default two read where there are cores for them, and none where a whole epoch is read faster than
    a process starts. `pin` allocates pinned memory (for CUDA). With `recycle`, the default, a batch must be released
    before its successors can be read into its buffers, and at most `ahead` + 3 are held at once; in DataLoader workers
    memory is always fresh.
    """

    def __init__(
        self,
        cache: FeatureCache,
        order: ReadingOrder,
        *,
        ahead: int = 2,
        processes: int | None = None,
        pin: bool = False,
        recycle: bool = True,
    ) -> None:
        """UsageError where an epoch would have no batch."""
        if ahead < 1 or (processes or 0) < 0:
            raise UsageError(f"ahead must be positive and processes not negative, got {ahead} and {processes}")
        self.cache, self.order = cache, order
        self._pin, self._recycle = pin, recycle and get_worker_info() is None
        self._state = BatchState()
        self._sequence: tuple[int, Numbers] | None = None
        self._readers: list[ProcessReader] = []
        self._pool: BufferPool | None = None
        for view in range(cache.views):
            if not order.batches(len(cache.samples_in(view))):
                raise UsageError(
                    f"{cache.cache}: {len(cache.samples_in(view))} samples of view {view} make no batch of "
                    f"{order.batch_size}; take a smaller batch, or extract more"
                )
        if processes is None:
            epoch_bytes = self.batches_in(0) * order.part_size * cache.sample_bytes
            processes = 0 if epoch_bytes < _SMALL_EPOCH else min(2, max(1, usable_cores() - 1))
        self._processes, self._ahead = processes, max(ahead, processes)

    @property
    def state(self) -> BatchState:
        """Where reading stands: batches that were handed out count, prefetched ones do not."""
        done = self._state.batches >= self.batches_in(self._state.epoch)
        return BatchState(self._state.epoch + 1) if done else self._state

    def load_state(self, state: BatchState) -> None:
        """Go on from a saved `state`: the same batches follow as did then."""
        self._state = state

    def view_of(self, epoch: int) -> int:
        """The view that an epoch reads."""
        return epoch % self.cache.views

    def batches_in(self, epoch: int) -> int:
        """How many batches an epoch has."""
        return self.order.batches(len(self.cache.samples_in(self.view_of(epoch))))

    def __len__(self) -> int:
        """Batches of the current epoch, consumed ones included."""
        return self.batches_in(self.state.epoch)

    def part(self, epoch: int, number: int) -> BatchPart:
        """Which samples this rank has in a batch, for whoever loads the images beside the features."""
        known = self._sequence  # another thread may put another epoch's there
        if known is None or known[0] != epoch:
            samples = self.cache.samples_in(self.view_of(epoch))
            known = self._sequence = epoch, self.order.sequence(samples, epoch)
        return self.order.part(known[1], number)

    def __iter__(self) -> Iterator[EncodedBatch]:
        self._state = self.state
        epoch = self._state.epoch
        readers, pool = self._started()
        numbers = iter(range(self._state.batches, len(self)))
        pending: deque[_Pending] = deque()
        try:
            pending.extend(self._submit(epoch, number, readers, pool) for number in islice(numbers, self._ahead))
            while pending:  # a batch stays pending while it is read: where that fails, its buffers are given back
                batch = self._received(pending[0])
                read = pending.popleft()
                batch.mask, batch.epoch, batch.number = read.mask, epoch, read.number
                if self._recycle:
                    pool.lend(batch, read.filled)
                pending.extend(self._submit(epoch, number, readers, pool) for number in islice(numbers, 1))
                self._state = BatchState(epoch, batch.number + 1)
                yield batch
        finally:  # nothing may be read into buffers that the next epoch uses
            for reader in readers:
                reader.drain()
            for unread in pending:
                pool.give_back(unread.filled)

    def _started(self) -> tuple[list[ProcessReader], BufferPool]:
        """Readers that can read for this process, none where it reads itself, and the buffers that they fill."""
        if self._pool is None or not all(reader.alive() for reader in self._readers):
            sizes = ArraySizes.of(self.cache.stored, self.order.part_size)
            make = partial(make_buffers, sizes, shared=self._processes > 0, pin=self._pin)
            self._pool = BufferPool(make, self._ahead + 1 + _SPARE if self._recycle else inf)
            self._readers = [ProcessReader(self.cache.stored, sizes) for _ in range(self._processes)]
        return self._readers, self._pool

    def _submit(self, epoch: int, number: int, readers: list[ProcessReader], pool: BufferPool) -> "_Pending":
        part = self.part(epoch, number)
        request = self.cache.request(part.samples, self.view_of(epoch))
        filled = pool.take()
        reader = readers[number % len(readers)] if readers else None
        if reader is not None and filled.shared is not None:
            filled.wait()
            reader.submit(request.view, request.pieces, filled.shared)
        return _Pending(number, request, part.mask, filled, reader)

    def _received(self, asked: "_Pending") -> EncodedBatch:
        """The batch that was asked for; what reading it raised is raised here."""
        if asked.reader is not None:
            asked.reader.wait()
        else:
            read_pieces(self.cache.stored, asked.request.view, asked.request.pieces, asked.filled.wait())
        return self.cache.batch(asked.request, asked.filled.contents)


@dataclass(frozen=True)
class _Pending:
    """A batch that `reader` reads into `filled`, or this process when it is asked for."""

    number: int
    request: Request
    mask: Mask
    filled: Filled
    reader: ProcessReader | None
