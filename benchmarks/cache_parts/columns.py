"""The columns that are read and written: encoded maps of a ViT teacher, four levels of int8 values and scales."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray
from safetensors.numpy import save

from pipeline.cache.stores.base import ArrayLayout, ColumnLayout
from pipeline.cache.stores.blocks import ColumnStore
from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location

Batch = dict[str, NDArray[Any]]
LEVELS = (3, 6, 9, 12)


def layout(tokens: int, channels: int, samples: int, block: int) -> ColumnLayout:
    """Four levels of int8 (tokens, channels) with a float16 scale a token: the default encoding of ViTs."""
    arrays = []
    for level in LEVELS:
        arrays.append(ArrayLayout(f"l{level}/values", "int8", (tokens, channels), 0))
        arrays.append(ArrayLayout(f"l{level}/scales", "float16", (tokens,), float("nan")))
    return ColumnLayout(tuple(arrays), samples, block)


def names(of: ColumnLayout, levels: tuple[int, ...] = LEVELS) -> list[str]:
    """Arrays of some levels."""
    return [array.name for array in of.arrays if int(array.name.split("/")[0][1:]) in levels]


def content(of: ColumnLayout, count: int, seed: int = 0) -> Batch:
    """Encoded samples that no codec could shrink."""
    rng = np.random.default_rng(seed)
    made = {}
    for array in of.arrays:
        size = count * array.nbytes
        made[array.name] = np.frombuffer(rng.bytes(size), array.dtype).reshape(count, *array.shape)
    return made


@dataclass(frozen=True)
class Written:
    """What one run reads: our stores, and the same samples as webdataset users commonly keep them."""

    layout: ColumnLayout
    zarr: tuple[ZarrStore, ...]
    tar: TarStore
    safetensors: tuple[str, ...]
    folders: tuple[Path, ...]


def blocks(of: ColumnLayout, batch: Batch) -> Iterator[tuple[int, int, Batch]]:
    """(block, position of the first, samples) of a column that repeats `batch`."""
    count = len(next(iter(batch.values())))
    for block in range(of.blocks):
        samples = len(of.block_samples(block))
        for start in range(0, samples, count):
            part = min(count, samples - start)
            yield block, start, {name: values[:part] for name, values in batch.items()}


def write_column(store: ColumnStore, batch: Batch) -> None:
    """A whole column that repeats `batch`."""
    store.prepare(1)
    for block in range(store.layout.blocks):
        write_block(store, block, batch)


def write_block(store: ColumnStore, block: int, batch: Batch) -> None:
    """One block that repeats `batch`."""
    with store.open_block(0, block) as writer:
        for of_block, start, part in blocks(store.layout, batch):
            if of_block == block:
                writer.append(range(start, start + len(next(iter(part.values())))), part)
        writer.finish()


def write_safetensors(path: Path, of: ColumnLayout, block: int, batch: Batch) -> None:
    """One block as webdataset users do: a tar of one .safetensors a sample."""
    with webdataset.TarWriter(str(path)) as writer:
        for of_block, start, part in blocks(of, batch):
            if of_block == block:
                for i in range(len(next(iter(part.values())))):
                    sample = {name: values[i] for name, values in part.items()}
                    writer.write({"__key__": f"{block:04d}{start + i:06d}", "safetensors": save(sample)})


def write_all(folder: Path, of: ColumnLayout, batch: Batch) -> Written:
    """Three teachers in zarr, one of them in our tars and in safetensors too."""
    teachers = tuple(ZarrStore(open_location(folder / f"zarr{number}"), of) for number in range(3))
    tar = TarStore(open_location(folder / "tar"), of, "{:08d}".format)
    for store in (*teachers, tar):
        write_column(store, batch)
    (folder / "safetensors").mkdir()
    tars = [folder / "safetensors" / f"{block:04d}.tar" for block in range(of.blocks)]
    for block, path in enumerate(tars):
        write_safetensors(path, of, block, batch)
    places = (*(folder / f"zarr{number}" for number in range(3)), folder / "tar", folder / "safetensors")
    return Written(of, teachers, tar, tuple(map(str, tars)), places)
