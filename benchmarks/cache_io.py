"""How fast columns are read and written, against one thread's pread and write of the same encoded bytes.

    python benchmarks/cache_io.py [--quick] [--disk FOLDER] [--tmpfs /dev/shm] [--json FILE] [--against CHECKOUT]

`--against` another checkout of the project makes one table alone: its reader and this one's, in turns.

All variants of a table take turns in one run; shares compare best turns. Full size needs 6 GB on the disk.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cache_parts.checkouts import against
from cache_parts.columns import content, layout, write_all
from cache_parts.measure import read_from_disk
from cache_parts.random_samples import Reading
from cache_parts.size import QUICK, Rows, Size
from cache_parts.uses import busy_consumer, first_batch, parts, streaming
from cache_parts.writing import writing
from report import machine, table, versions


def run(size: Size, disk: Path, tmpfs: Path, show: Callable[[str, Rows], None]) -> None:
    """Every table, shown as it is done."""
    of = layout(size.tokens, size.channels, size.samples, size.block)
    show("Writing a block, durable", writing(disk, size, durable=True))
    show("Writing a block, tmpfs", writing(tmpfs, size, durable=False))
    written = write_all(disk, of, content(of, size.batch))
    read_from_disk(written.folders)
    reading = Reading(written, size)
    show("Random samples, warm page cache", reading.rows(cold=False))
    show("Random samples, cold page cache", reading.rows(cold=True))
    read_from_disk(written.folders)  # random reads leave it in small pieces, which copy more slowly
    show("A whole column in order, warm", streaming(written, size))
    show("Parts of what is there", parts(written, size))
    show("Read ahead of a busy Python thread", busy_consumer(written, size))
    show("First batch of a large column", first_batch(disk, size))


def run_against(size: Size, disk: Path, other: Path, show: Callable[[str, Rows], None]) -> None:
    """The reader of another checkout and this one's."""
    of = layout(size.tokens, size.channels, size.samples, size.block)
    written = write_all(disk, of, content(of, size.batch))
    read_from_disk(written.folders)
    show(f"Batches read ahead, against {other.name}", against(written, size, other))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small columns and few turns, to see that it runs")
    parser.add_argument(
        "--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a folder in memory")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--against", type=Path, help="another checkout of the project, whose reader is compared")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else Size()
    tables: dict[str, Rows] = {}

    def show(title: str, rows: Rows) -> None:
        tables[title] = rows
        print(f"\n{title}\n\n{table(rows)}", flush=True)

    about = f"{machine()}; {versions('numpy', 'google-crc32c', 'zarr', 'tensorstore', 'webdataset', 'safetensors')}"
    print(f"`{' '.join(['python', *sys.argv])}`\n\n{about}\n\n{size}")
    with tempfile.TemporaryDirectory(dir=chosen.disk) as disk, tempfile.TemporaryDirectory(dir=chosen.tmpfs) as tmpfs:
        if chosen.against:
            run_against(size, Path(disk), chosen.against.resolve(), show)
        else:
            run(size, Path(disk), Path(tmpfs), show)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "size": vars(size), "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
