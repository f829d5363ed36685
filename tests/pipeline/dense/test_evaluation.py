"""The evaluation loop: the metrics of the whole set at the images' own sizes, whatever the batches and processes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pipeline.data.augment import for_evaluation
from pipeline.data.datasets import open_dataset, task_table
from pipeline.data.label_files import DataError
from pipeline.data.sample import TaskSample
from pipeline.demo.data.write import write_demo_data
from pipeline.dense.evaluation import Evaluation, evaluate_tasks, from_plain, to_plain
from pipeline.evaluate.boundary import BoundaryConfig, evaluate_boundaries
from sak.errors import SakError, UsageError
from sak.metrics.outputs import pixel_metric, read_output
from sak.tasks import NYUD, PASCAL_CONTEXT

SIZE = (64, 80)


@pytest.fixture(autouse=True)
def label_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAK_LABEL_CACHE", str(tmp_path_factory.getbasetemp() / "labels"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "demo"
    write_demo_data(folder, images=2, scenes=35, size=64, processes=1)
    return folder


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def colours(images):
    """Outputs of every task that follow from an image's colours alone, pixel by pixel."""
    grey = images.mean(1, keepdim=True)

    def waves(channels):
        return torch.cat([torch.sin((k + 1) * grey) for k in range(channels)], 1)

    return {
        "semseg": waves(21 if images.shape[-1] != 80 else 40),
        "human_parts": waves(7),
        "sal": waves(2),
        "normals": images,
        "edge": grey,
        "depth": 3 + grey,
    }


def pascal(images):
    return {**colours(images), "semseg": torch.cat([torch.cos(k * images.mean(1, keepdim=True)) for k in range(21)], 1)}


def nyud(images):
    return {**colours(images), "semseg": torch.cat([torch.cos(k * images.mean(1, keepdim=True)) for k in range(40)], 1)}


def evaluate(name, folder, predict, accelerator, **options):
    dataset = open_dataset(name, folder, "val")
    return evaluate_tasks(predict, dataset, task_table(name), **{"size": SIZE, "accelerator": accelerator} | options)


@pytest.mark.parametrize(("name", "predict", "size"), [("pascal-context", pascal, (56, 56)), ("nyud", nyud, (48, 64))])
def test_metrics_are_those_of_the_padded_images_with_padding_ignored(golden, accelerator, name, predict, size):
    """The published way: predict the padded image, compare with labels padded by 255."""
    found = evaluate(name, golden / "sak/fake_datasets", predict, accelerator, size=size, boundary=False, batch_size=2)
    dataset = open_dataset(name, golden / "sak/fake_datasets", "val")
    for task in task_table(name):
        metric = pixel_metric(task)
        if metric is None:
            continue
        for index in range(len(dataset)):
            padded = for_evaluation(dataset[index], size)
            prediction = read_output(task, predict(padded.image[None])[task.name])
            label = padded.labels[task.name]
            metric.update(prediction, label[None] if prediction.ndim == 4 else label)
        assert found.metrics[task.name] == pytest.approx(metric.result().value, rel=1e-12), task.name


@pytest.mark.parametrize(("name", "predict"), [("demo-pascal", pascal), ("demo-nyud", nyud)])
def test_batches_change_no_number(demo, accelerator, name, predict):
    one, many = (evaluate(name, demo, predict, accelerator, batch_size=size) for size in (1, 4))
    assert to_plain(one) == to_plain(many)
    assert set(one.metrics) == set(task_table(name).names)
    assert all(math.isfinite(value) for value in one.metrics.values())


@pytest.mark.slow
def test_worker_processes_change_no_number(demo, accelerator):
    one, more = (evaluate("demo-nyud", demo, nyud, accelerator, workers=workers) for workers in (0, 2))
    assert to_plain(one) == to_plain(more)


@pytest.mark.slow
def test_several_processes_give_the_very_numbers_of_one(demo, accelerator, tmp_path):
    """Eight images in batches of 3 over two processes: two batches and one, of unequal sizes."""
    one = evaluate("demo-nyud", demo, nyud, accelerator, batch_size=3)
    assert one.images == 8
    _torchrun(demo, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == json.loads(json.dumps(to_plain(one)))


@pytest.mark.slow
def test_an_unreadable_image_stops_every_process_with_one_line(demo, tmp_path):
    (tmp_path / "fail").write_text("")
    _torchrun(demo, tmp_path)
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in range(2))
    assert first == second
    assert "image 0 is gone" in first


def _torchrun(demo, out):
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code = Path(__file__).with_name("evaluation_worker.py")
    subprocess.run([*command, str(code), str(demo), str(out)], check=True, env=environment, cwd=root, timeout=200)


def test_an_evaluation_survives_its_own_json(demo, accelerator):
    found = evaluate("demo-pascal", demo, pascal, accelerator, boundary=False)
    text = json.dumps(to_plain(found), allow_nan=False)
    assert json.dumps(to_plain(from_plain(Evaluation, json.loads(text)))) == text
    assert "edge" not in found.metrics


@dataclass
class Wide:
    """One image of 100 x 200 with depth 4 metres everywhere."""

    tasks: tuple = ("depth",)
    depth: float = 4.0

    def __len__(self):
        return 1

    def __getitem__(self, index):
        depth = np.full((100, 200, 1), self.depth, np.float32)
        return TaskSample("wide", np.full((100, 200, 3), 128, np.float32), {"depth": depth}, (100, 200))

    def name(self, index):
        return "wide"

    def boundary_truth(self, index):
        raise DataError("none")


def test_a_larger_image_is_shrunk_and_its_depth_scaled_as_in_training(accelerator):
    """Shrunk by two, a scene four metres away looks eight metres away."""
    seen = []

    def predict(images):
        seen.append(images)
        return {"depth": torch.full((1, 1, *images.shape[-2:]), 8.0)}

    table = NYUD.select(["depth"])
    found = evaluate_tasks(predict, Wide(), table, size=(64, 100), accelerator=accelerator)
    assert found.metrics["depth"] == 0
    assert found.tasks["depth"].pixels == 100 * 200
    assert (seen[0][0, 0] != 0).sum() == 50 * 100  # the rest is padding
    as_it_is = evaluate_tasks(predict, Wide(), table, size=(64, 100), accelerator=accelerator, rescale_depth=False)
    assert as_it_is.metrics["depth"] == 4


def test_an_image_without_a_valid_pixel_is_counted_as_unlabelled(accelerator):
    def predict(images):
        return {"depth": torch.ones(1, 1, *images.shape[-2:])}

    found = evaluate_tasks(
        predict, Wide(depth=0.0), NYUD.select(["depth"]), size=(64, 96), accelerator=accelerator
    ).tasks["depth"]
    assert (found.images, found.unlabelled, found.pixels) == (0, 1, 0)
    assert math.isnan(found.value)


def test_saved_edges_score_the_same_with_the_boundary_command(demo, accelerator, tmp_path):
    found = evaluate("demo-pascal", demo, pascal, accelerator, save=tmp_path)
    config = BoundaryConfig(tmp_path / "edge", demo, "pascal-context", processes=1)
    report = evaluate_boundaries(config)
    assert 100 * report.score.ods == found.metrics["edge"]
    assert 100 * report.score.ois == found.tasks["edge"].numbers["ois"]
    assert {path.name for path in tmp_path.iterdir()} == set(PASCAL_CONTEXT.names)


def test_missing_labels_missing_tasks_and_nan_are_one_line(demo, accelerator):
    dataset = open_dataset("demo-nyud", demo, "val", ["depth"])
    with pytest.raises(UsageError, match="no labels of semseg, normals, only of depth"):
        evaluate_tasks(nyud, dataset, NYUD, size=SIZE, accelerator=accelerator)
    with pytest.raises(SakError, match="not finite"):
        evaluate_tasks(
            lambda images: {"depth": torch.full((len(images), 1, *SIZE), float("nan"))},
            dataset,
            NYUD.select(["depth"]),
            size=SIZE,
            accelerator=accelerator,
        )
    with pytest.raises(UsageError, match="no task is left"):
        evaluate_tasks(nyud, dataset, NYUD.select(["edge"]), size=SIZE, accelerator=accelerator, boundary=False)
