"""The mean gates of a student's routers, and their picture."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from pipeline.data.task_batches import gate_noise
from pipeline.dense.evaluation import from_plain, to_plain
from pipeline.dense.gates import MeanGates, draw_gates, recorded_gates
from pipeline.pictures.charts import draw_rep_sim
from pipeline.pictures.panel import spread
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize
from sak.tasks import NYUD
from sak.teachers import TeacherRecipe
from sak.variants.frozen import Amalgam, AmalgamConfig


@pytest.fixture(scope="module")
def student():
    config = StudentConfig(
        (32, 32), StemSize(16, 4, 2), "random:0", teachers={"clip": 16, "sam": 16}, tasks=NYUD.channels
    )
    return new_student(config, seed=0).eval()


def test_means_are_over_images_whatever_the_batches(student):
    images = torch.randn(5, 3, 32, 32)
    with recorded_gates(student) as recorder, torch.no_grad():
        outputs = [student(images[:3]), student(images[3:])]
    found = recorder.means(Accelerator(cpu=True))
    assert found.images == 5
    assert found.experts == ("TAS", "clip", "sam")
    for level, tasks in found.weights.items():
        for task, row in tasks.items():
            expected = torch.cat([output.gates[level][task] for output in outputs]).double().mean(0)
            assert row == pytest.approx(expected.tolist(), abs=1e-12)
    assert from_plain(MeanGates, to_plain(found)) == found


def test_an_amalgamations_gates_are_over_its_teachers():
    tiny = {"embed_dim": 16, "depth": 4, "num_heads": 2}
    clip = {"model": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "overrides": tiny}
    recipes = tuple(TeacherRecipe(name, weights=f"random:{seed}", **clip) for seed, name in enumerate(("one", "two")))
    config = AmalgamConfig(recipes, (32, 32), {"depth": 1, "edge": 1})
    amalgam = Amalgam(config, config.build_teachers()).eval()
    images = torch.randn(3, 3, 32, 32)
    with recorded_gates(amalgam) as recorder, torch.no_grad():
        output = amalgam(images)
    found = recorder.means(Accelerator(cpu=True))
    assert (found.experts, found.images, list(found.weights)) == (("one", "two"), 3, [1, 2, 3, 4])
    assert found.weights[2]["edge"] == pytest.approx(output.gates[2]["edge"].double().mean(0).tolist(), abs=1e-12)
    draw = gate_noise(amalgam, 7)
    noise = draw(["b", "a", "c"], 0)
    assert torch.equal(noise[3]["edge"][1:2], draw(["a"], 0)[3]["edge"])
    once, again = (amalgam.train()(images, noise=noise).tasks["depth"] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, amalgam(images, noise=draw(["b", "a", "c"], 1)).tasks["depth"])


def test_nothing_is_recorded_after_the_block_in_training_or_without_routers(student):
    with recorded_gates(student) as recorder:
        student.train()(torch.randn(2, 3, 32, 32))
        student.eval()
    student(torch.randn(1, 3, 32, 32))
    assert recorder.means(Accelerator(cpu=True)) is None
    with recorded_gates(torch.nn.Linear(1, 1)) as recorder:
        pass
    assert recorder.means(SimpleNamespace(num_processes=1)) is None


def test_the_pictures_are_drawn(student, tmp_path):
    weights = {level: dict.fromkeys(NYUD.names, (0.5, 0.3, 0.2)) for level in (1, 2)}
    draw_gates(MeanGates(("TAS", "clip", "sam"), 3, weights), NYUD, tmp_path / "figures/gates.png")
    draw_rep_sim({"clip": (0.5, 0.6), "sam": (0.7, 0.4)}, (1, 2), tmp_path / "figures/rep_sim.png", images=3)
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_examples_are_spread_over_the_set():
    assert spread(10, 2) == (2, 7)
    assert spread(3, 5) == (0, 1, 2)
    assert all(0 <= index < 654 for index in spread(654, 7))
