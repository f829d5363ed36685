"""docs/extending.md: every example is under thirty lines and does what the page says."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.ablate.stage_settings import only_teachers
from pipeline.ablate.study import load_study
from pipeline.cache.spec import load_spec, parse_spec
from pipeline.data import datasets
from pipeline.data import datasets as folder
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.finetune.stage import finetune, finetune_config
from sak import tasks
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize
from sak.teachers import build_teacher
from sak.variants.decoders import DECODERS
from tests.docs.pages import ROOT, block_with, code_blocks, page

TEXT = page("extending.md")
QUICK = ["student.stem={width: 24, depth: 4, heads: 3}", "training.schedule.kind=constant"]


def run_block(words: str) -> dict:
    names = {}
    exec(compile(block_with(TEXT, words), "docs/extending.md", "exec"), names)
    return names


def test_examples_are_under_thirty_lines():
    assert max(len(each.strip().splitlines()) for each in code_blocks(TEXT)) < 30


def test_a_teacher_of_a_library_is_a_few_lines_of_a_spec():
    spec = parse_spec(yaml.safe_load(block_with(TEXT, "siglip:\n")))
    assert spec.teachers["siglip"].levels == (3, 6, 9, 12)
    others = load_spec(ROOT / "cache_specs" / "sak_b.yaml")
    assert only_teachers(spec, list(others.teachers), "the page") == others


def test_the_ablation_of_a_teacher_is_a_study(tmp_path):
    (tmp_path / "siglip.yaml").write_text(block_with(TEXT, "title:"))
    study = load_study(tmp_path / "siglip.yaml")
    assert [len(row["distill.teachers"]) for row in study.rows.values()] == [3, 4]


def test_a_teacher_of_ones_own_is_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text(block_with(TEXT, "# my_teacher.py"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_teacher", raising=False)
    teacher = build_teacher("custom:my_teacher:build", weights="random:0", image_size=64, levels=(2, 4))
    assert [tuple(each.shape) for each in teacher(torch.rand(2, 3, 64, 64))] == [(2, 64, 4, 4)] * 2
    assert teacher.is_random


@pytest.fixture
def roads(tmp_path):
    """The folder that the page's roads.yaml describes, and two columns of labels more."""
    (tmp_path / "roads.yaml").write_text(block_with(TEXT, "# roads.yaml"))
    random = np.random.default_rng(0)
    for number in range(4):
        _png(tmp_path / f"images/{number}.png", random.integers(0, 256, (40, 48, 3), np.uint8))
        _png(tmp_path / f"labels/{number}.png", random.integers(0, 3, (40, 48), np.uint8))
        _png(tmp_path / f"materials/{number}.png", random.integers(0, 3, (40, 48), np.uint8))
        _png(tmp_path / f"depth/{number}.png", random.integers(500, 9000, (40, 48)).astype(np.uint16))
        _png(tmp_path / f"edges/{number}.png", 255 * random.integers(0, 2, (40, 48), np.uint8))
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n")
    return tmp_path


def _png(path: Path, pixels) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def train(dataset: str, data: Path, *overrides: str):
    overrides = [*QUICK, "data.size=[32, 32]", *overrides]
    asked = finetune_config(init="random:0", dataset=dataset, data=data, overrides=overrides, baseline="multi-task",
                            steps=2, batch_size=2, device="cpu", workers=0)  # fmt: skip
    return finetune(asked, data / "run")


def test_the_described_folder_is_read_and_trained_on(roads):
    sample = datasets.open_dataset(str(roads / "roads.yaml"), roads, "val")[0]
    assert set(sample.labels) == {"semseg", "depth", "edge"}
    assert 0.5 <= sample.labels["depth"].min() <= sample.labels["depth"].max() < 9
    assert train(str(roads / "roads.yaml"), roads).step == 2


def test_a_task_of_classes_is_a_line(roads):
    described = yaml.safe_load((roads / "roads.yaml").read_text())
    described["tasks"] = yaml.safe_load(block_with(TEXT, "more under tasks:"))
    (roads / "roads.yaml").write_text(yaml.safe_dump(described))
    assert datasets.task_table(str(roads / "roads.yaml"))["material"] == run_block("MATERIAL = Task(")["MATERIAL"]
    assert train(str(roads / "roads.yaml"), roads).step == 2


def test_a_task_is_a_row(roads, monkeypatch):
    monkeypatch.setitem(folder.ROWS, "material", run_block("MATERIAL = Task(")["MATERIAL"])
    described = yaml.safe_load((roads / "roads.yaml").read_text())
    described["tasks"] = {"material": {"folder": "materials"}}
    (roads / "roads.yaml").write_text(yaml.safe_dump(described))
    result = train(str(roads / "roads.yaml"), roads)
    assert (result.step, result.stopped) == (2, False)


def test_a_data_set_of_ones_own_is_a_reader(roads, monkeypatch):
    monkeypatch.setitem(datasets.READERS, "fields", run_block("class Fields")["Fields"])
    rows = (tasks.Task("semseg", 3, "cross_entropy", 1.0, "mIoU", "%", False, "palette", ("soil", "oats", "rye")),)
    monkeypatch.setitem(tasks.DATASETS, "fields", tasks.Dataset("fields", (32, 32), rows))
    for number in range(4):
        for there, here in (("images", "image"), ("labels", "crop")):
            (roads / str(number)).mkdir(exist_ok=True)
            (roads / there / f"{number}.png").rename(roads / str(number) / f"{here}.png")
    assert not datasets.check_tree("fields", roads, "train").missing
    assert train("fields", roads).step == 2
    (roads / "3" / "crop.png").unlink()
    assert datasets.check_tree("fields", roads, "val").missing == (roads / "3" / "crop.png",)


def test_a_decoder_is_a_module_and_its_name(monkeypatch):
    made = run_block("class LinearDecoder")["LinearDecoder"]
    monkeypatch.setitem(DECODERS, "linear", made)
    assert FinetuneRecipe.model_validate({"student": {"decoder": "linear"}}).student.decoder == "linear"
    size = StemSize(24, 4, 3)
    asked = StudentConfig((32, 64), size, "random:0", tasks={"semseg": 5}, fusion="none", decoder="linear")
    student = new_student(asked)
    assert student(torch.rand(1, 3, 32, 64)).tasks["semseg"].shape == (1, 5, 32, 64)
