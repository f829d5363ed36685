from dataclasses import replace

import pytest
import torch

from sak.errors import UsageError
from sak.student.build import build_student, without_lora
from sak.student.config import Lora
from sak.variants.lora import LoraLinear


def trained(config):
    """A student whose updates are no longer zero."""
    student = build_student(config)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_()
    return student.double().eval()


@pytest.fixture
def config(tiny):
    return replace(tiny, lora=Lora(rank=2, alpha=6.0, targets=("qkv", "proj", "fc1")))


@torch.no_grad()
def test_a_fresh_update_changes_nothing(tiny, config, images):
    plain, updated = build_student(tiny).eval(), build_student(config).eval()
    assert torch.equal(plain(images).tas.maps[-1], updated(images).tas.maps[-1])


def test_the_stem_under_the_updates_takes_its_weights_from_a_file(config, tmp_path):
    donor = build_student(replace(config, lora=None, weights="random:9")).stem.vit.state_dict()
    torch.save(donor, tmp_path / "vit.pth")
    student = build_student(replace(config, weights=str(tmp_path / "vit.pth")))
    assert all(torch.equal(value, student.stem.vit.state_dict()[key]) for key, value in donor.items())


@torch.no_grad()
def test_merging_changes_no_output(config, images):
    student = trained(config)
    before = student(images.double())
    merged = without_lora(student)
    after = merged(images.double())
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    assert merged.config.lora is None
    for task, prediction in before.tasks.items():
        torch.testing.assert_close(after.tasks[task], prediction, rtol=0, atol=1e-12)


def test_the_merged_weight_is_w_plus_alpha_over_rank_up_down(config):
    layer = trained(config).stem.vit.blocks[1].attn.qkv
    expected = layer.weight + 3.0 * layer.lora_up @ layer.lora_down
    torch.testing.assert_close(layer.merged().weight, expected)
    assert torch.equal(layer.merged().bias, layer.bias)


def test_only_the_updates_of_the_stem_are_trained_and_all_other_parts(config, images):
    student = build_student(config).train()
    student(images).tas.maps[-1].sum().backward()
    stem = dict(student.stem.named_parameters())
    assert {name for name, parameter in stem.items() if parameter.requires_grad} == {
        name for name in stem if "lora_" in name
    }
    assert all(parameter.grad is None for name, parameter in stem.items() if "lora_" not in name)
    assert all(parameter.requires_grad for parameter in student.paths.parameters())


def test_the_targets_and_no_others_are_replaced(config):
    student = build_student(config)
    replaced = {name for name, module in student.named_modules() if isinstance(module, LoraLinear)}
    assert replaced == {
        f"stem.vit.blocks.{block}.{layer}" for block in range(4) for layer in ("attn.qkv", "attn.proj", "mlp.fc1")
    }


def test_a_merged_stem_stays_frozen_and_a_plain_one_stays_free(tiny, config):
    assert not any(parameter.requires_grad for parameter in without_lora(build_student(config)).stem.parameters())
    assert all(parameter.requires_grad for parameter in without_lora(build_student(tiny)).stem.parameters())


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 0}, "at least 1"), ({"targets": ("attn",)}, "qkv, proj, fc1, fc2, got 'attn'")]
)
def test_meaningless_updates_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Lora(**options)
