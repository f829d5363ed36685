"""The published implementation's teachers: features on tiny random models, digit for digit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sak.teachers import build_teacher

CASES = {
    "05a_teacher_dinov2_98": ("timm/vit_base_patch14_dinov2.lvd142m", {"image_size": 98}),
    "05c_teacher_clip_p16_96": ("timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", {"image_size": 96}),
    "05e_teacher_sam_160": ("timm/samvit_base_patch16.sa1b", {"image_size": 96, "input_size": 160}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, golden, tmp_path_factory):
    """(teacher, tensors, facts) of one golden file; weights are loaded from a file with its `model.` keys."""
    from safetensors.torch import save_file

    tensors = load_file(golden / "sak" / f"{request.param}.safetensors")
    facts = json.loads((golden / "sak" / f"{request.param}.json").read_text())
    weights = tmp_path_factory.mktemp("golden") / "teacher.safetensors"
    save_file({key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}, weights)
    model, sizes = CASES[request.param]
    overrides = {key: value for key, value in facts["overrides"].items() if key != "img_size"}
    teacher = build_teacher(model, weights=weights, overrides=overrides, **sizes)
    return teacher, tensors, facts


def _inputs(tensors):
    return {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith("input.")}


def test_features_equal_the_published_ones_in_float32(case):
    teacher, tensors, _ = case
    for name, images in _inputs(tensors).items():
        for number, map_ in enumerate(teacher.float().features(images), start=1):
            torch.testing.assert_close(map_, tensors[f"out.{name}.level{number}"], atol=1e-4, rtol=0)


def test_float64_features_are_as_far_from_the_published_float32_ones_as_the_published_float64_ones(case):
    """The file holds float32 maps and their greatest distance from its own float64 run."""
    teacher, tensors, facts = case
    for name, images in _inputs(tensors).items():
        maps = teacher.double().features(images.double())
        distance = max(
            (map_ - tensors[f"out.{name}.level{number}"]).abs().max().item() for number, map_ in enumerate(maps, 1)
        )
        assert distance == pytest.approx(facts["f32_vs_f64_max_abs"][name], abs=1e-10)


def test_grid_epsilon_and_prefix_free_maps_are_those_of_the_published_teachers(case):
    teacher, tensors, facts = case
    assert teacher.layer_norm_eps == facts["norm_eps_block"]
    assert teacher.grid() == tuple(facts["grid_size"])
    for name, images in _inputs(tensors).items():
        assert [list(map_.shape) for map_ in teacher.float().features(images)] == facts["out_shapes"][name]


def test_images_in_zero_to_one_give_the_same_features_as_normalised_ones(case):
    teacher, tensors, _ = case
    teacher.double()
    for images in _inputs(tensors).values():
        unit = (images.double() * teacher.std + teacher.mean).clamp(0, 1)
        for ours, theirs in zip(teacher(unit), teacher.features(images.double()), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_sam_resize_and_padding_equal_the_published_ones(case):
    teacher, tensors, _ = case
    for name, images in _inputs(tensors).items():
        if f"preprocessed.{name}" in tensors:
            torch.testing.assert_close(teacher.preprocessing.prepare(images), tensors[f"preprocessed.{name}"])
