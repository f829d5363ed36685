"""Writing a block."""

import shutil
from collections.abc import Callable
from pathlib import Path

from cache_parts.columns import (
    content,
    layout,
    write_block,
    write_safetensors,
)
from cache_parts.measure import compare, in_turns, sync_files
from cache_parts.peers import (
    raw_writer,
    write_with_tensorstore,
    write_with_zarr_python,
)
from cache_parts.size import Rows, Size

from pipeline.cache.stores.tar_store import TarStore
from pipeline.cache.stores.zarr_store import ZarrStore
from pipeline.storage import open_location


def writing(folder: Path, size: Size, *, durable: bool) -> Rows:
    """One block: durable on the disk, or on tmpfs where the processor is all there is."""
    of = layout(size.tokens, size.channels, size.block, size.block)
    batch = content(of, size.batch)
    place = folder / "written"
    zarr = ZarrStore(open_location(place), of)

    def clean() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        zarr.prepare(1)  # once a column, not once a block

    def peer(write: Callable[[Path], None]) -> Callable[[], None]:
        def run() -> None:
            write(place)
            if durable:
                sync_files(place)

        return run

    def ours(store: ZarrStore | TarStore) -> Callable[[], None]:
        return lambda: write_block(store, 0, batch)

    variants = {
        "raw": raw_writer(place / "raw", [batch] * (size.block // size.batch), durable=durable),
        "zarr": ours(zarr),
        "webdataset": ours(TarStore(open_location(place), of, "{:08d}".format)),
        "webdataset + safetensors": peer(lambda at: write_safetensors(at / "0.tar", of, 0, batch)),
        "tensorstore": peer(lambda at: write_with_tensorstore(at, of, batch)),
        "zarr-python": peer(lambda at: write_with_zarr_python(at, of, batch)),
    }
    timings = in_turns(variants, size.few, clean)
    shutil.rmtree(place)
    return compare(timings, dict.fromkeys(variants, of.samples * of.nbytes / 1e9), "raw")
