"""The other ways to read and write the same samples."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import webdataset
import zarr
from cache_parts.columns import Batch
from numpy.typing import NDArray
from safetensors.numpy import load

from pipeline.cache.reader.process import ArraySizes, Piece, ProcessReader, SharedMemory, StoredPart
from pipeline.cache.stores.base import ColumnLayout
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location

Samples = NDArray[np.int64]


class RawReader:
    """One thread's preads of the same bytes, into the same buffers: places known, files open, nothing checked."""

    def __init__(self, store: ZarrStore, names: Sequence[str], out: Batch) -> None:
        self._block = store.layout.block
        keys = [("", name, 0, block) for name in names for block in range(store.layout.blocks)]
        files = dict(zip([(key[1], key[3]) for key in keys], store.load(keys), strict=True))
        self._names = names
        self._descriptors = {key: file.descriptor for key, file in files.items()}
        self._offsets = {key: file.places[0, :, 0].tolist() for key, file in files.items()}
        self._rows = {name: [memoryview(row.reshape(-1).view(np.uint8)) for row in out[name]] for name in names}

    def jobs(self, samples: Samples) -> list[tuple[int, list[memoryview], int]]:
        """What `read` does, worked out before the clock runs."""
        made = []
        for name in self._names:
            for row, sample in zip(self._rows[name], samples.tolist(), strict=False):
                block, position = divmod(sample, self._block)
                made.append((self._descriptors[name, block], [row], self._offsets[name, block][position]))
        return made

    @staticmethod
    def read(jobs: list[tuple[int, list[memoryview], int]]) -> None:
        """The preads."""
        for descriptor, memory, offset in jobs:
            os.preadv(descriptor, memory, offset)


class OtherProcess:
    """Our reader in a process of its own, as training has it: a batch is asked for and waited for."""

    def __init__(self, store: ZarrStore, names: Sequence[str], rows: int, buffers: int = 1) -> None:
        parts = {"": [StoredPart("", store, tuple(names))]}
        sizes = ArraySizes.of(parts, rows)
        self._reader, self._memory = ProcessReader(parts, sizes), [SharedMemory(sizes) for _ in range(buffers)]
        self._asked = 0

    def ask(self, samples: Samples) -> None:
        """Begin to read the next batch."""
        memory = self._memory[self._asked % len(self._memory)]
        self._reader.submit(0, {"": [Piece(0, samples, None)]}, memory)
        self._asked += 1

    def wait(self) -> None:
        """Until the oldest batch is there."""
        self._reader.wait()

    def read(self, samples: Samples) -> None:
        """One batch."""
        self.ask(samples)
        self.wait()


class ZarrPython:
    """zarr-python on our shards, a sample at a time: its fastest way to random samples."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        group = zarr.open_group(str(folder), mode="r")
        self._arrays: list[Any] = [group[name] for name in names]

    def read(self, samples: Samples) -> list[Any]:
        """Every array of every sample."""
        return [array[0, sample] for array in self._arrays for sample in samples.tolist()]


class Tensorstore:
    """tensorstore on our shards, all chunks asked for at once."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._arrays = [self._open(f"{folder}/{name}/", context) for name in names]

    @staticmethod
    def _open(path: str, context: object) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        return tensorstore.open(spec, open=True, read=True, context=context).result()

    def read(self, samples: Samples) -> list[Any]:
        """Every array of every sample."""
        futures = [array[0, sample].read() for array in self._arrays for sample in samples.tolist()]
        return [future.result() for future in futures]


def stream_safetensors(tars: Sequence[str]) -> Iterator[Batch]:
    """Webdataset's reader over tars of .safetensors."""
    for sample in webdataset.WebDataset(list(tars), shardshuffle=False):
        yield load(sample["safetensors"])


def stream_our_tars(folder: Path) -> Iterator[dict[str, Any]]:
    """Webdataset's reader over our tars, decoding arrays."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    yield from webdataset.WebDataset(tars, shardshuffle=False).decode()


def raw_writer(path: Path, batches: Sequence[Batch], *, durable: bool) -> Callable[[], None]:
    """One thread's writes of the same bytes into one file, as few calls as there are arrays."""
    pieces = [memoryview(values.reshape(-1).view(np.uint8)) for batch in batches for values in batch.values()]

    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for piece in pieces:
            done = 0
            while done < len(piece):
                done += os.write(descriptor, piece[done:])
        if durable:
            os.fsync(descriptor)
        os.close(descriptor)

    return write


def write_with_zarr_python(folder: Path, of: ColumnLayout, batch: Batch) -> None:
    """One block through zarr-python, whole shards at once."""
    group = zarr.open_group(str(folder), mode="w")
    for array in of.arrays:
        made = group.create_array(
            array.name,
            shape=(1, of.samples, *array.shape),
            shards=(1, of.block, *array.shape),
            chunks=(1, 1, *array.shape),
            dtype=array.dtype,
            compressors=None,
            fill_value=array.fill,
        )
        count = len(of.block_samples(0))
        made[0, :count] = np.concatenate([batch[array.name]] * -(-count // len(batch[array.name])))[:count]


def write_with_tensorstore(folder: Path, of: ColumnLayout, batch: Batch) -> None:
    """One block through tensorstore, whole shards at once, in arrays that zarr-python would make."""
    write_empty(folder, of)
    futures = []
    count = len(of.block_samples(0))
    for array in of.arrays:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{array.name}/"}}
        values = np.concatenate([batch[array.name]] * -(-count // len(batch[array.name])))[:count]
        opened = tensorstore.open(spec, open=True, write=True, read=True).result()
        futures.append(opened[0, :count].write(values))
    for future in futures:
        future.result()


def write_empty(folder: Path, of: ColumnLayout) -> None:
    """Our metadata, without any shard."""
    ZarrStore(open_location(folder), of).prepare(1)
