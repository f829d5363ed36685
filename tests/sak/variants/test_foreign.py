"""RADIO and Theia as stems: names resolve, their files' layouts fit, a missing file is one clear line."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sak.errors import SakError
from sak.student.build import build_student, make_student, multi_task_baseline, parameter_counts
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize, stem_size
from sak.tasks import dataset
from sak.variants.foreign import THEIA

RADIO_L = "vit_large_patch16_radio_v3.c_radio"


@pytest.fixture
def radio() -> StudentConfig:
    size = StemSize(width=24, depth=4, heads=3, registers=2, layer_scale=True, class_position=False)
    return StudentConfig(image_size=(48, 64), stem=size, weights="random:1", tasks={"depth": 1}, fusion="none")


def radio_file(config, folder, side=5):
    """A file in RADIO's own layout, drawn at random, with a table of side x side positions."""
    width = config.size.width
    with torch.device("meta"):
        blocks = {key: value for key, value in make_student(config).stem.vit.state_dict().items() if "blocks." in key}
    state = {f"radio_model.model.{key.replace('.gamma', '.grandma')}": torch.randn(value.shape)
             for key, value in blocks.items()}  # fmt: skip
    state |= {
        "radio_model.model.patch_generator.embedder.weight": torch.randn(width, 3 * 16 * 16),
        "radio_model.model.patch_generator.pos_embed": torch.randn(1, side * side, width),
        "radio_model.model.patch_generator.cls_token.token": torch.randn(3, width),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
    }
    path = folder / "radio.safetensors"
    save_file(state, path)
    return path, state


@torch.no_grad()
def test_a_file_in_radios_layout_fills_the_stem(radio, tmp_path):
    path, state = radio_file(radio, tmp_path)
    student = build_student(replace(radio, weights=str(path))).eval()
    vit = student.stem.vit
    tokens = state["radio_model.model.patch_generator.cls_token.token"]
    assert torch.equal(vit.cls_token[0], tokens[:1])
    assert torch.equal(vit.reg_token[0], tokens[1:])
    assert torch.equal(vit.blocks[1].ls2.gamma, state["radio_model.model.blocks.1.ls2.grandma"])
    assert vit.pos_embed.shape == (1, 12, 24)
    images = torch.randn(2, 3, 48, 64)
    output = student(images)
    assert output.tas.grid == (3, 4)
    theirs = vit.forward_intermediates(images, indices=[3], intermediates_only=True)
    torch.testing.assert_close(output.tas[4], theirs[0])


def test_radios_names_resolve_and_its_position_table_is_the_difference_from_the_multi_task_baseline():
    """Tables 5 and 6: 372 M and 362 M, 15 M more than the baseline's 357 and 346: its table of 128 x 128 positions."""
    table = 128 * 128 * 1024
    for name, millions in (("pascal-context", 372), ("nyud", 362)):
        rows = dataset(name)
        config = StudentConfig(image_size=rows.input_size, stem=RADIO_L, tasks=rows.channels, fusion="none")
        with torch.device("meta"):
            student = make_student(multi_task_baseline(config))
        counted = parameter_counts(student)["total"] - student.stem.vit.pos_embed.numel() + table
        assert round(counted / 1e6) == millions


def theia_file(size, folder):
    """A file in Theia's layout (transformers' ViT), drawn at random."""
    width, state = size.width, {}
    base = "theia_model.backbone.model."
    state[f"{base}embeddings.cls_token"] = torch.randn(1, 1, width)
    state[f"{base}embeddings.position_embeddings"] = torch.randn(1, 1 + 16, width)
    state[f"{base}embeddings.patch_embeddings.projection.weight"] = torch.randn(width, 3, 16, 16)
    state[f"{base}embeddings.patch_embeddings.projection.bias"] = torch.randn(width)
    linears = {"attention.attention.query": (width, width), "attention.attention.key": (width, width),
               "attention.attention.value": (width, width), "attention.output.dense": (width, width),
               "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}  # fmt: skip
    for number in range(size.depth):
        layer = f"{base}encoder.layer.{number}"
        for name, shape in linears.items():
            state[f"{layer}.{name}.weight"], state[f"{layer}.{name}.bias"] = torch.randn(shape), torch.randn(shape[0])
        for norm in ("layernorm_before", "layernorm_after"):
            state[f"{layer}.{norm}.weight"], state[f"{layer}.{norm}.bias"] = torch.randn(width), torch.randn(width)
    state[f"{base}layernorm.weight"] = torch.randn(width)
    state["theia_model.translator.translator_heads.clip.encoder.layer.0.weight"] = torch.randn(3)
    save_file(state, folder / "theia.safetensors")
    return folder / "theia.safetensors", state


def test_a_file_in_theias_layout_fills_the_stem(tmp_path):
    size = StemSize(width=12, depth=4, heads=3)
    path, state = theia_file(size, tmp_path)
    config = StudentConfig(image_size=(64, 64), stem=size, weights=str(path), tasks={"depth": 1}, fusion="none")
    vit = build_student(config).stem.vit
    layer = "theia_model.backbone.model.encoder.layer.2"
    assert torch.equal(vit.blocks[2].attn.qkv.weight[12:24], state[f"{layer}.attention.attention.key.weight"])
    assert torch.equal(vit.blocks[2].mlp.fc2.bias, state[f"{layer}.output.dense.bias"])
    assert torch.equal(vit.pos_embed, state["theia_model.backbone.model.embeddings.position_embeddings"])


def test_theias_names_resolve():
    assert stem_size("theia_base_patch16_224.cdiv") == StemSize(width=768, depth=12, heads=12)
    assert set(THEIA) == {f"theia_{size}_patch16_224.cdiv" for size in ("tiny", "small", "base")}


@pytest.mark.parametrize("stem", ["theia_tiny_patch16_224.cdiv", RADIO_L])
def test_weights_that_are_not_here_are_one_clear_line(stem, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = StudentConfig(image_size=(64, 64), stem=stem, tasks={"depth": 1}, fusion="none")
    with pytest.raises(SakError, match=r"weights of .* are neither in the Hugging Face cache nor to be had") as told:
        build_student(config)
    assert "\n" not in str(told.value)
    with pytest.raises(SakError, match="no such weights file"):
        build_student(replace(config, weights=str(tmp_path / "radio.pth")))
