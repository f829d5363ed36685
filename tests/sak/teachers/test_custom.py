import sys
import textwrap

import pytest
import torch

from sak.errors import SakError, UsageError
from sak.teachers import build_teacher
from sak.teachers.weights import WeightsError

SOURCE = """
import torch
from torch import nn

class Model(nn.Module):
    width, depth, patch_size, layer_norm_eps, licence = 6, 4, 8, 1e-5, "cc0-1.0"
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        nn.init.constant_(self.patches.weight, 0.01)
        nn.init.zeros_(self.patches.bias)

    def forward(self, images, levels):
        return [self.patches(images) * level for level in levels]

def builder(image_size):
    return Model()

def short(image_size):
    model = Model()
    model.forward = lambda images, levels: [images]
    return model

def nothing(image_size):
    return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of builders and make it importable, under a name of its own."""

    def write(source=SOURCE):
        name = f"own_teachers_{tmp_path.name}_{len(list(tmp_path.iterdir()))}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.startswith(f"own_teachers_{tmp_path.name}".replace("-", "_"))]:
        del sys.modules[name]


def test_a_builder_makes_a_teacher_with_its_own_weights(module):
    teacher = build_teacher(f"custom:{module()}:builder", image_size=(20, 32))
    assert (teacher.name, teacher.width, teacher.depth, teacher.grid()) == ("builder", 6, 4, (2, 4))
    assert (teacher.licence, teacher.layer_norm_eps, teacher.is_random) == ("cc0-1.0", 1e-5, False)
    maps = teacher(torch.ones(1, 3, 20, 32))
    assert maps.levels == (1, 2, 3, 4)
    assert torch.equal(maps[4], maps[1] * 4)


def test_native_normalisation_is_the_modules_own(module):
    native = build_teacher(f"custom:{module()}:builder", image_size=16, normalization="native")
    assert native(torch.full((1, 3, 16, 16), 0.5))[1].abs().max().item() == 0


def test_random_and_file_weights_fill_its_state_dict(module, save_state):
    model = f"custom:{module()}:builder"
    own, random = (build_teacher(model, weights=weights, image_size=16) for weights in ("pretrained", "random:0"))
    loaded = build_teacher(model, weights=save_state(own.tower.model.state_dict()), image_size=16)
    assert own.weights_sha256 == loaded.weights_sha256 != random.weights_sha256
    assert random.is_random
    with pytest.raises(WeightsError, match=r"misses patches\.weight"):
        build_teacher(model, weights=save_state({"x": torch.ones(1)}), image_size=16)


def test_the_source_of_a_builder_is_part_of_the_revision(module):
    first, second = module(), module(SOURCE + "\n# changed\n")
    revisions = [
        build_teacher(f"custom:{name}:builder", image_size=16).identity()["revision"] for name in (first, second)
    ]
    assert revisions[0] != revisions[1]
    assert all("custom-" in str(revision) for revision in revisions)


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("missing", "has no function 'missing'"),
        ("nothing", "must return an nn.Module with the integers width, depth, patch_size; got a int without width"),
    ],
)
def test_what_is_no_builder_is_refused(module, builder, said):
    with pytest.raises(UsageError, match=said):
        build_teacher(f"custom:{module()}:{builder}", image_size=16)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="No module named 'no_such_teachers'; the module must be importable"):
        build_teacher("custom:no_such_teachers:builder")


def test_maps_of_a_wrong_shape_are_refused(module):
    teacher = build_teacher(f"custom:{module()}:short", image_size=16)
    with pytest.raises(SakError, match=r"wanted 4 maps \(1, 6, 2, 2\), got \[\(1, 3, 16, 16\)\]"):
        teacher(torch.rand(1, 3, 16, 16))
