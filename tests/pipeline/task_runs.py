"""Small fine-tuned runs with random weights, as their commands leave them, for evaluation and prediction."""

import json

import yaml

from pipeline.data.datasets import task_table
from pipeline.dense.task_model import save_task_model
from pipeline.train.checkpoint import new_checkpoint, point, step_folder
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize

SAK = {"teachers": {"dinov2": 24, "clip": 24}}
MULTI_TASK = {"fusion": "none"}


def write_run(place, name, data, *, size=(64, 64), seed=0, tasks=None, parts=SAK, step=1):
    """A run of data set `name` with one checkpoint, which is `best` and `last`."""
    channels = {task: count for task, count in task_table(name).channels.items() if tasks is None or task in tasks}
    model = new_student(StudentConfig(size, StemSize(24, 4, 3), "random:0", tasks=channels, **parts), seed=seed)
    with new_checkpoint(place / "checkpoints", step) as folder:
        save_task_model(model, folder)
    for link in ("best", "last"):
        point(place / "checkpoints", link, step_folder(place / "checkpoints", step))
    (place / "config.yaml").write_text(yaml.safe_dump({"data": str(data)}))
    about = {"stage": "finetune", "dataset": name, "kind": "sak", "tasks": list(channels)}
    (place / "run.json").write_text(json.dumps(about))
    return place
