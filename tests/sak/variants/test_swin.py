"""The hierarchical student: levels are stages, each with its own grid and channels."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from sak.checkpoints.store import load_student, save_student
from sak.errors import SakError, UsageError
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss
from sak.student.build import build_student, make_student, many_to_one, parameter_counts
from sak.student.config import StudentConfig
from sak.variants.swin import SwinPaths, SwinSize, SwinStem

SMALL = "swin_small_patch4_window7_224.ms_in22k_ft_in1k"


@pytest.fixture
def swin() -> StudentConfig:
    return StudentConfig(
        image_size=(64, 96),
        stem=SwinSize(embed=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=3),
        weights="random:1",
        teachers={"dinov2": 24, "sam": 16},
        tasks={"semseg": 5, "depth": 1},
    )


@torch.no_grad()
def test_levels_are_stages_with_their_own_grids_and_widths(swin):
    output = build_student(swin).eval()(torch.randn(2, 3, 64, 96))
    assert output.tas.levels == (1, 2, 3, 4)
    expected = [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert [tuple(map_.shape) for map_ in output.tas] == expected
    assert [tuple(map_.shape) for map_ in output.paths["sam"]] == expected
    assert [map_.shape[1] for map_ in output.teachers["dinov2"]] == [24] * 4
    assert {task: tuple(map_.shape) for task, map_ in output.tasks.items()} == {
        "semseg": (2, 5, 64, 96),
        "depth": (2, 1, 64, 96),
    }
    assert set(output.gates) == {1, 2, 3, 4}


@torch.no_grad()
def test_the_stem_is_timms_swin():
    size = SwinSize(embed=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=3)
    stem = SwinStem(size, (64, 96)).eval()
    images = torch.randn(2, 3, 64, 96)
    theirs = stem.swin.forward_intermediates(images, intermediates_only=True)
    tokens = stem(images)
    assert len(tokens) == 6
    for level, map_ in enumerate(theirs, start=1):
        assert torch.equal(tokens[stem.index(level)], map_.flatten(2).mT)


@torch.no_grad()
def test_a_path_is_equation_2_within_a_stage_and_carried_where_one_begins():
    size = SwinSize(embed=4, depths=(1, 1), heads=(1, 1), window=2)
    paths = SwinPaths(["a"], size, (16, 16), down_ratio=2)
    path = paths["a"]
    z = [torch.randn(1, 16, 4), torch.randn(1, 16, 4), torch.randn(1, 4, 8)]
    first = path.adapters[1](path.adapters[0](z[0]) + z[1])
    map_ = first.mT.unflatten(2, (4, 4))
    means = torch.stack([map_[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], dim=1)
    second = path.adapters[2](path.carries[0](means) + z[2])
    found = paths(z, (1, 2))
    torch.testing.assert_close(found[0][0], first)
    torch.testing.assert_close(found[1][0], second)


@pytest.mark.slow
def test_a_swin_small_path_is_under_five_percent_of_its_stem():
    config = StudentConfig(image_size=(224, 224), stem=SMALL, teachers=dict.fromkeys(("dinov2", "clip", "sam"), 768))
    assert config.size == SwinSize(embed=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), window=7)
    with torch.device("meta"):
        counts = parameter_counts(make_student(config))
        theirs = timm.create_model(SMALL, num_classes=0)
    assert counts["TAS"] == sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("norm."))
    assert counts["TSAP"] / 3 / counts["TAS"] < 0.05


def test_distillation_resizes_by_the_losss_own_rules_and_trains_every_part(swin):
    student = build_student(replace(swin, tasks={})).train()
    output = student(torch.randn(2, 3, 64, 96))
    targets = {name: FeatureMaps((3, 6, 9, 12), tuple(torch.randn(2, width, 4, 6) for _ in range(4)))
               for name, width in swin.teacher_widths.items()}  # fmt: skip
    DistillationLoss()(output.teachers, targets).total.backward()
    assert not [name for name, value in student.named_parameters() if value.grad is None]


@torch.no_grad()
def test_it_is_saved_and_comes_back_equal(swin, tmp_path):
    student = build_student(swin).eval()
    save_student(student, tmp_path)
    again = load_student(tmp_path).eval()
    assert again.config == swin.resolved()
    assert StudentConfig.from_json(json.loads(json.dumps(swin.to_json()))) == swin
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(student(images).tasks["depth"], again(images).tasks["depth"])


@torch.no_grad()
def test_another_image_size_takes_the_same_weights(swin, tmp_path):
    save_student(build_student(swin), tmp_path)
    larger = load_student(tmp_path, image_size=(96, 128)).eval()
    assert larger(torch.randn(1, 3, 96, 128)).tasks["depth"].shape == (1, 1, 96, 128)


@torch.no_grad()
def test_many_to_one_and_sum_work_as_with_a_vit(swin):
    images = torch.randn(1, 3, 64, 96)
    plain = build_student(many_to_one(swin)).eval()(images)
    assert (plain.paths, plain.gates) == ({}, {})
    assert [map_.shape[1] for map_ in plain.teachers["sam"]] == [16] * 4
    added = build_student(replace(swin, fusion="sum")).eval()(images)
    assert added.tasks["semseg"].shape == (1, 5, 64, 96)


def test_sizes_and_images_that_no_swin_has_are_refused(swin):
    with pytest.raises(UsageError, match="multiples of 32, got"):
        replace(swin, image_size=(48, 96))
    with pytest.raises(UsageError, match="as many heads as depths"):
        SwinSize(embed=8, depths=(1, 1), heads=(1,))
    with pytest.raises(UsageError, match="width must be a multiple of its heads"):
        SwinSize(embed=8, depths=(1,), heads=(3,))
    with pytest.raises(UsageError, match=r"no option 'windows'.*window"):
        StudentConfig.from_json(swin.to_json() | {"stem": {"embed": 8, "depths": [1], "heads": [1], "windows": 7}})


def test_a_file_of_timms_swin_fills_the_stem(swin, tmp_path):
    from safetensors.torch import save_file

    donor = SwinStem(swin.size, (64, 64)).swin
    state = {name: value.contiguous() for name, value in donor.state_dict().items()}
    save_file({**state, "norm.weight": torch.ones(64), "head.fc.bias": torch.ones(3)}, tmp_path / "swin.safetensors")
    student = build_student(replace(swin, weights=str(tmp_path / "swin.safetensors")))
    assert all(torch.equal(student.stem.swin.state_dict()[name], value) for name, value in state.items())
    save_file({name: value for name, value in state.items() if "layers.0" not in name}, tmp_path / "part.safetensors")
    with pytest.raises(SakError, match="keys do not fit the stem"):
        build_student(replace(swin, weights=str(tmp_path / "part.safetensors")))
