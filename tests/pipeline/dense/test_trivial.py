"""Predictors that look at no image."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipeline.data.sample import TaskSample
from pipeline.dense.evaluation import evaluate_tasks
from pipeline.dense.task_data import label_statistics, trivial_predict
from sak.errors import SakError
from sak.tasks import NYUD, PASCAL_CONTEXT

SIZE = (32, 48)


def label(value, channels=1):
    return np.broadcast_to(np.asarray(value, np.float32), (20, 40, channels)).copy()


@dataclass
class Labelled:
    """Two images: semseg 3 mostly, depth 2 and 4 metres, normals z and x."""

    tasks: tuple = ("semseg", "depth", "normals", "sal")
    samples: list = field(default_factory=list)

    def __post_init__(self):
        first, second = label(3), label(255)
        first[:4] = 7
        flat = {"sal": label(0)}
        flat["sal"][:5] = 1
        self.samples = [
            {"semseg": first, "depth": label(2), "normals": label((0, 0, 1), 3), **flat},
            {"semseg": second, "depth": label(4), "normals": label((1, 0, 0), 3), **flat},
        ]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return TaskSample(str(index), np.zeros((20, 40, 3), np.float32), self.samples[index], (20, 40))

    def name(self, index):
        return str(index)


def test_the_commonest_class_the_mean_depth_and_the_mean_normal_are_predicted():
    table = NYUD.select(["semseg", "depth", "normals"])
    predict = trivial_predict(label_statistics(Labelled(), table), table)
    outputs = predict(torch.zeros(2, 3, 5, 6))
    assert outputs["semseg"].argmax(1).unique().tolist() == [3]
    assert outputs["depth"].unique().tolist() == [3.0]
    assert outputs["normals"][1, :, 4, 5].tolist() == [0.5, 0, 0.5]
    assert all(output.shape[::2] == (2, 5) for output in outputs.values())


def test_their_scores_are_those_worked_out_by_hand():
    table = NYUD.select(["semseg", "depth", "normals"])
    data = Labelled()
    predict = trivial_predict(label_statistics(data, table), table)
    found = evaluate_tasks(predict, data, table, size=SIZE, accelerator=Accelerator(cpu=True))
    assert found.metrics["semseg"] == pytest.approx(100 * 0.8 / 40)
    assert found.metrics["depth"] == pytest.approx(1)
    assert found.metrics["normals"] == pytest.approx(45)


def test_salient_everywhere_finds_all_that_is_salient():
    table = PASCAL_CONTEXT.select(["sal"])
    predict = trivial_predict(label_statistics(Labelled(), table), table)
    found = evaluate_tasks(predict, Labelled(), table, size=SIZE, accelerator=Accelerator(cpu=True))
    assert found.metrics["sal"] == pytest.approx(100 * 1.3 * 0.25 / (0.3 * 0.25 + 1))


def test_a_task_without_labels_has_no_trivial_predictor():
    data = Labelled()
    data.samples[0]["depth"] = data.samples[1]["depth"] = label(0)
    table = NYUD.select(["depth"])
    with pytest.raises(SakError, match="no training label has a valid pixel"):
        trivial_predict(label_statistics(data, table), table)
