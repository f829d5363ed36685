"""One of two processes that fine-tune together: `finetune_worker.py INIT DATA OUT RECIPE STOPPED_RANK`."""

import os
import signal
import sys
from pathlib import Path

from pipeline.data.task_batches import TaskBatches
from pipeline.finetune.stage import finetune, finetune_config
from pipeline.train.run import RunOptions, Start


def main(init: str, data: str, out: Path, recipe: str, stopped: int) -> None:
    """Ten steps, four that end in a signal to one process, and the other six."""
    plain = TaskBatches.start_at

    def stopping(self, first):
        for number, batch in enumerate(plain(self, first), start=first + 1):
            if number == 4 and int(os.environ["RANK"]) == stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    flags = {"config": recipe, "steps": 10, "device": "cpu"}
    asked = finetune_config(init=init, dataset="demo-pascal", data=data, **flags)
    straight = finetune(asked, out / "straight")
    TaskBatches.start_at = stopping
    first = finetune(asked, out / "parts")
    TaskBatches.start_at = plain
    second = finetune(asked, out / "parts", RunOptions(Start(resume=True)))
    steps = [result.step for result in (straight, first, second)]
    (out / f"steps-{os.environ['RANK']}.txt").write_text(repr(steps))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
