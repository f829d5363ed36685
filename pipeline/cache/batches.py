"""Batches for training: read ahead by processes of their own, into buffers used again and again.

batches = FeatureBatches(cache, ReadingOrder(batch_size=1024, seed=0, block=cache.block))
for batch in batches:  # the rest of one epoch
    targets = batch.decode("cuda")
    batch.release()
state = batches.state  # what was consumed, for a checkpoint
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.buffers import BufferPool, Filled, make_buffers
from pipeline.cache.cache import FeatureCache, Request
from pipeline.cache.order import BatchPart, BatchState, ReadingOrder
from pipeline.cache.reader_process import ArraySizes, BatchReader, HereReader, ProcessReader
from pipeline.cache.universe import Numbers
from pipeline.processes import usable_cores
from sak.errors import UsageError

_SPARE = 2  # batches a consumer may hold beside the one it works on
_SMALL_EPOCH = 64 << 20  # bytes


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
        self._readers: _Readers | None = None
        for view in range(cache.views):
            if not order.batches(len(cache.samples_in(view))):
                raise UsageError(
                    f"{cache.cache}: {len(cache.samples_in(view))} samples of view {view} make no batch of "
                    f"{order.batch_size}; take a smaller batch, or extract more"
                )
        self._processes = self._usual_processes() if processes is None else processes
        self._ahead = max(ahead, self._processes)

    def _usual_processes(self) -> int:
        epoch_bytes = self.batches_in(0) * self.order.part_size * self.cache.sample_bytes
        return 0 if epoch_bytes < _SMALL_EPOCH else min(2, max(1, usable_cores() - 1))

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
        if self._readers is None or not self._readers.alive():
            self._readers = self._started()
        with closing(_Prefetch(self, self._readers, self._state, self._ahead)) as prefetch:
            for number in range(self._state.batches, len(self)):
                batch = prefetch.next()
                self._state = BatchState(self._state.epoch, number + 1)
                yield batch

    def _started(self) -> "_Readers":
        sizes = ArraySizes.of(self.cache.stored, self.order.part_size)
        make = partial(make_buffers, sizes, shared=self._processes > 0, pin=self._pin)
        pool = BufferPool(make, self._ahead + 1 + _SPARE) if self._recycle else None
        readers = [ProcessReader(self.cache.stored, sizes) for _ in range(self._processes)]
        return _Readers(readers or [HereReader(self.cache.stored)], make, pool)


@dataclass(frozen=True)
class _Readers:
    """Who reads, and into what: buffers of the pool, or new ones from `make`."""

    readers: Sequence[BatchReader]
    make: Callable[[], Filled]
    pool: BufferPool | None

    def alive(self) -> bool:
        """Whether all can read for this process."""
        return all(reader.alive() for reader in self.readers)

    def take(self) -> Filled:
        """Buffers for one batch."""
        return self.make() if self.pool is None else self.pool.take()

    def give_back(self, filled: Filled) -> None:
        """Buffers that no batch is in."""
        if self.pool is not None:
            self.pool.give_back(filled)

    def lend(self, batch: EncodedBatch, filled: Filled) -> EncodedBatch:
        """The batch, which gives its buffers back where they are used again."""
        return batch if self.pool is None else self.pool.lend(batch, filled)


@dataclass(frozen=True)
class _Asked:
    """A batch that is being read."""

    reader: BatchReader
    number: int
    request: Request
    mask: NDArray[np.bool_]
    filled: Filled


class _Prefetch:
    """Reads the rest of an epoch in order, some batches ahead."""

    def __init__(self, batches: FeatureBatches, readers: _Readers, state: BatchState, ahead: int) -> None:
        self._batches, self._readers, self._epoch, self._ahead = batches, readers, state.epoch, ahead
        self._numbers = iter(range(state.batches, batches.batches_in(state.epoch)))
        self._asked: deque[_Asked] = deque()

    def next(self) -> EncodedBatch:
        """The next batch; what reading it raised is raised here."""
        while len(self._asked) < self._ahead and self._submit():
            pass
        asked = self._asked[0]
        asked.reader.wait()
        batch = self._batches.cache.batch(asked.request, asked.filled.contents)
        self._asked.popleft()
        batch.mask, batch.epoch, batch.number = asked.mask, self._epoch, asked.number
        batch = self._readers.lend(batch, asked.filled)
        self._submit()
        return batch

    def _submit(self) -> bool:
        number = next(self._numbers, None)
        if number is None:
            return False
        part = self._batches.part(self._epoch, number)
        request = self._batches.cache.request(part.samples, self._batches.view_of(self._epoch))
        filled = self._readers.take()
        asked = _Asked(self._readers.readers[number % len(self._readers.readers)], number, request, part.mask, filled)
        self._asked.append(asked)
        asked.reader.submit(request.view, request.pieces, filled.wait(), filled.shared)
        return True

    def close(self) -> None:
        """Wait for what is being read and give it up; nothing is read on after this."""
        for reader in self._readers.readers:
            reader.drain()
        for asked in self._asked:
            self._readers.give_back(asked.filled)
