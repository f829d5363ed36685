"""One of several processes that evaluate together; writes what it found."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from test_evaluation import nyud

from pipeline.data.datasets import open_dataset, task_table
from pipeline.data.label_files import DataError
from pipeline.dense.evaluation import evaluate_tasks, to_plain
from sak.errors import SakError

demo, out = Path(sys.argv[1]), Path(sys.argv[2])


class Broken:
    """The data set without its first image."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.tasks = dataset.tasks

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == 0:
            raise DataError("image 0 is gone")
        return self.dataset[index]

    def name(self, index):
        return self.dataset.name(index)

    def boundary_truth(self, index):
        return self.dataset.boundary_truth(index)


accelerator = Accelerator(cpu=True)
dataset = open_dataset("demo-nyud", demo, "val")
if (out / "fail").exists():
    dataset = Broken(dataset)
try:
    found = to_plain(
        evaluate_tasks(nyud, dataset, task_table("demo-nyud"), size=(64, 80), accelerator=accelerator, batch_size=3)
    )
except SakError as error:
    found = str(error)
(out / f"{accelerator.process_index}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
