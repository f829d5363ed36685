"""One of two processes that distil together: `distill_worker.py CACHE OUT RECIPE STOPPED_RANK`."""

import os
import signal
import sys
from pathlib import Path

from pipeline.data.distillation import CachedBatches
from pipeline.distill import run_distill


def main(cache: str, out: Path, recipe: str, stopped: int) -> None:
    """Twenty steps, seven that end in a signal to one process, and the other thirteen."""
    plain = CachedBatches.start_at

    def stopping(self, first):
        for number, batch in enumerate(plain(self, first), start=first + 1):
            if number == 7 and int(os.environ["RANK"]) == stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    common = {"config": recipe, "steps": 20, "batch_size": 8, "device": "cpu"}
    straight = run_distill(cache, out / "straight", **common)
    CachedBatches.start_at = stopping
    first = run_distill(cache, out / "parts", **common)
    CachedBatches.start_at = plain
    second = run_distill(cache, out / "parts", **common, resume=True)
    steps = [result.step for result in (straight, first, second)]
    (out / f"steps-{os.environ['RANK']}.txt").write_text(repr(steps))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
