"""A fine-tuning that dies: `finetune_killed_worker.py INIT DATA OUT RECIPE WHAT`, where WHAT names a function here."""

import os
import signal
import sys
from pathlib import Path

from pipeline.data.task_batches import TaskBatches
from pipeline.finetune.stage import finetune, finetune_config
from pipeline.train import resume

STEPS = {"steps": 10, "device": "cpu", "overrides": ["training.checkpoint_every=3"]}


def in_a_step() -> None:
    """SIGKILL as the eighth batch is asked for, two steps after a checkpoint."""
    plain = TaskBatches.start_at

    def start_at(self, first):
        for number, batch in enumerate(plain(self, first), start=first + 1):
            if number == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    TaskBatches.start_at = start_at


def while_saving() -> None:
    """SIGKILL in the checkpoint of step 6, whose largest file is half written."""
    plain = resume.write_state

    def write_state(folder, state):
        plain(folder, state)
        if state.step == 6:
            os.truncate(folder / "training.safetensors", 1000)
            (folder / "training.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    resume.write_state = write_state


if __name__ == "__main__":
    init, data, out, recipe, what = sys.argv[1:]
    {"in a step": in_a_step, "while saving": while_saving}[what]()
    finetune(finetune_config(init=init, dataset="demo-pascal", data=data, config=recipe, **STEPS), Path(out))
