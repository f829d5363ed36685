"""Batches for training: read ahead by threads of the training process, into buffers used again and again.

batches = FeatureBatches(cache, ReadingOrder(batch_size=1024, seed=0, block=cache.block))
for batch in batches:  # the rest of one epoch
    targets = batch.decode("cuda")
    batch.release()
state = batches.state  # what was consumed, for a checkpoint
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

from torch.utils.data import get_worker_info

from pipeline.cache.batch import EncodedBatch
from pipeline.cache.buffers import BufferPool, Filled, make_buffers
from pipeline.cache.cache import FeatureCache
from pipeline.cache.order import BatchPart, BatchState, ReadingOrder
from pipeline.cache.universe import Numbers
from sak.errors import UsageError

_SPARE = 2  # batches a consumer may hold beside the one it works on


class FeatureBatches:
    """Iterating gives what is left of the current epoch; the next iteration the next epoch.

    `ahead` batches are read before they are asked for, by `threads` threads. `pin` allocates pinned memory (for CUDA).
    With `recycle`, the default, a batch must be released before its successors can be read into its buffers, and at
    most `ahead` + 3 are held at once; in DataLoader workers memory is always fresh.
    """

    def __init__(
        self,
        cache: FeatureCache,
        order: ReadingOrder,
        *,
        ahead: int = 2,
        threads: int = 1,
        pin: bool = False,
        recycle: bool = True,
    ) -> None:
        """UsageError where an epoch would have no batch."""
        if ahead < 1 or threads < 1:
            raise UsageError(f"ahead and threads must be positive, got {ahead} and {threads}")
        self.cache, self.order = cache, order
        self.ahead, self.threads = max(ahead, threads), threads
        recycle = recycle and get_worker_info() is None
        limit = self.ahead + 1 + _SPARE
        make = partial(make_buffers, cache.readers, order.part_size, pin=pin)
        self._pool = BufferPool(make, limit) if recycle else None
        self._state = BatchState()
        self._sequence: tuple[int, Numbers] | None = None
        for view in range(cache.views):
            if not order.batches(len(cache.samples_in(view))):
                raise UsageError(
                    f"{cache.cache}: {len(cache.samples_in(view))} samples of view {view} make no batch of "
                    f"{order.batch_size}; take a smaller batch, or extract more"
                )

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
        with closing(_Prefetch(self, self._state)) as prefetch:
            for number in range(self._state.batches, len(self)):
                batch = prefetch.next()
                self._state = BatchState(self._state.epoch, number + 1)
                yield batch

    def read(self, epoch: int, number: int, filled: Filled | None = None) -> EncodedBatch:
        """One batch, now, into `filled` where given."""
        part = self.part(epoch, number)
        batch = self.cache.read(part.samples, self.view_of(epoch), None if filled is None else filled.wait())
        batch.mask, batch.epoch, batch.number = part.mask, epoch, number
        return batch

    def take_buffers(self) -> Filled | None:
        """Buffers for one batch; None where memory is fresh each time."""
        return None if self._pool is None else self._pool.take()

    def give_up_buffers(self) -> None:
        """One batch's buffers will not come back."""
        if self._pool is not None:
            self._pool.lose()

    def fill(self, epoch: int, number: int, filled: Filled | None) -> EncodedBatch:
        """`read`, with the buffers tied to the batch; they are given up where reading fails."""
        if filled is None or self._pool is None:
            return self.read(epoch, number)
        try:
            return self._pool.lend(self.read(epoch, number, filled), filled.contents)
        except BaseException:
            self.give_up_buffers()
            raise


class _Prefetch:
    """Reads the rest of an epoch in order, some batches ahead."""

    def __init__(self, batches: FeatureBatches, state: BatchState) -> None:
        self._batches, self._epoch = batches, state.epoch
        self._numbers = iter(range(state.batches, batches.batches_in(state.epoch)))
        self._threads = ThreadPoolExecutor(batches.threads, thread_name_prefix="features")
        self._reading: deque[Future[EncodedBatch]] = deque()
        batches.part(state.epoch, 0)  # the order is made here, once, not in every thread

    def next(self) -> EncodedBatch:
        """The next batch; what reading it raised is raised here."""
        while len(self._reading) < self._batches.ahead and self._submit():
            pass
        batch = self._reading.popleft().result()
        self._submit()
        return batch

    def _submit(self) -> bool:
        number = next(self._numbers, None)
        if number is None:
            return False
        filled = self._batches.take_buffers()
        self._reading.append(self._threads.submit(self._batches.fill, self._epoch, number, filled))
        return True

    def close(self) -> None:
        """Wait for what is being read and give it up; nothing runs on after this."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for reading in self._reading:
            if not reading.cancelled() and reading.exception() is None:
                reading.result().release()
            elif reading.cancelled():
                self._batches.give_up_buffers()
