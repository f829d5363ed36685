"""One of some processes that distil: `distill_worker.py CACHE OUT RECIPE WHAT`, where WHAT names a function here."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.distillation import CachedBatches
from pipeline.distill.stage import distill, distill_config
from pipeline.train import resume
from pipeline.train.run import RunOptions, Start

STEPS = {"steps": 20, "batch_size": 8, "device": "cpu"}


def run(cache, out, recipe, start=Start(), **flags):
    """A run of twenty steps."""
    return distill(distill_config(cache=cache, config=recipe, **STEPS, **flags), out, RunOptions(start))


@contextmanager
def signalled(step, number, rank=0):
    """A signal reaches process `rank` while it waits for the batch of `step`."""
    plain = CachedBatches.start_at

    def start_at(self, first):
        for each, batch in enumerate(plain(self, first), start=first + 1):
            if each == step and int(os.environ.get("RANK", "0")) == rank:
                os.kill(os.getpid(), number)
            yield batch

    CachedBatches.start_at = start_at
    try:
        yield
    finally:
        CachedBatches.start_at = plain


def stopped(cache, out, recipe):
    """Seven steps."""
    with signalled(7, signal.SIGTERM):
        run(cache, out, recipe)


def together(cache, out, recipe):
    """Twenty steps; seven that end in a signal to process 1 and the other thirteen; thirteen after one process's seven,
    and seven for one process to go on with."""
    again = Start(resume=True)
    results = [run(cache, out / "straight", recipe)]
    with signalled(7, signal.SIGTERM, rank=1):
        results.append(run(cache, out / "parts", recipe))
    results.append(run(cache, out / "parts", recipe, again))
    results.append(run(cache, out / "more", recipe, again))
    with signalled(7, signal.SIGTERM, rank=1):
        results.append(run(cache, out / "fewer", recipe))
    (out / f"steps-{os.environ['RANK']}.txt").write_text(repr([result.step for result in results]))


def killed_in_a_step(cache, out, recipe):
    """SIGKILL between two checkpoints, in the middle of the second epoch."""
    with signalled(8, signal.SIGKILL):
        run(cache, out, recipe, overrides=["training.checkpoint_every=3"])


def killed_while_saving(cache, out, recipe):
    """SIGKILL in the third checkpoint, whose largest file is half written."""
    plain, saved = resume.write_state, []

    def write_state(folder, state):
        plain(folder, state)
        saved.append(state.step)
        if len(saved) == 3:
            os.truncate(folder / "training.safetensors", 1000)
            (folder / "training.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    resume.write_state = write_state
    run(cache, out, recipe, overrides=["training.checkpoint_every=3"])


if __name__ == "__main__":
    globals()[sys.argv[4]](sys.argv[1], Path(sys.argv[2]), sys.argv[3])
