"""Our own checkpoints are whole, tell what they hold, and come back equal."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sak.checkpoints import store
from sak.checkpoints.store import load_student, read_config, save_student
from sak.errors import SakError, UsageError
from sak.student.build import build_student
from sak.student.config import Lora, StudentConfig
from sak.student.sizes import StemSize

CONFIG = StudentConfig(
    image_size=(64, 96),
    stem=StemSize(width=24, depth=4, heads=3),
    weights="random:3",
    teachers={"sam": None, "clip": 16},
    tasks={"semseg": 4, "edge": 1},
    gate_noise="pixel",
)


@pytest.fixture
def student():
    return build_student(CONFIG).eval()


def test_a_saved_student_comes_back_equal(tmp_path, student):
    save_student(student, tmp_path / "best")
    again = load_student(tmp_path / "best").eval()
    assert again.config == CONFIG.resolved()
    assert list(again.config.teachers) == ["sam", "clip"]
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(student(images).tasks["edge"], again(images).tasks["edge"])


def test_lora_and_frozen_parts_come_back(tmp_path):
    config = StudentConfig.from_json(CONFIG.to_json() | {"lora": Lora(rank=2).__dict__})
    saved = build_student(config)
    save_student(saved, tmp_path)
    again = load_student(tmp_path)
    trainable = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in saved.named_parameters() if parameter.requires_grad}
    assert any("lora_up" in name for name in trainable)
    assert "stem.vit.pos_embed" not in trainable


def test_the_description_beside_it_says_the_same(tmp_path, student):
    save_student(student, tmp_path)
    description = json.loads((tmp_path / "student.json").read_text())
    assert StudentConfig.from_json(description["config"]) == read_config(tmp_path / "student.safetensors")
    assert description["parameters"]["total"] == sum(parameter.numel() for parameter in student.parameters())


def test_another_image_size_resamples_the_position_embedding_from_the_known_grid(tmp_path, student):
    save_student(student, tmp_path)
    again = load_student(tmp_path, image_size=(96, 64)).eval()
    assert again.config.grid == (6, 4)
    assert again(torch.randn(1, 3, 96, 64)).tasks["semseg"].shape == (1, 4, 96, 64)
    assert not torch.equal(again.stem.vit.pos_embed, student.stem.vit.pos_embed)


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_rubbish(tmp_path, student, monkeypatch):
    save_student(student, tmp_path)
    before = load_file(tmp_path / "student.safetensors")

    def half(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", half)
    with torch.no_grad():
        student.stem.vit.cls_token.add_(1)
    with pytest.raises(OSError, match="No space left"):
        save_student(student, tmp_path)
    after = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(SakError, match=r"student\.safetensors: no checkpoint here"):
        load_student(tmp_path)


def test_a_cut_off_checkpoint_is_refused(tmp_path, student):
    file = save_student(student, tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SakError, match="not a whole safetensors file"):
        load_student(tmp_path)


def test_a_strangers_file_is_sent_to_the_import(tmp_path):
    save_file({"vit.cls_token": torch.ones(1)}, tmp_path / "student.safetensors")
    with pytest.raises(SakError, match="sak-cli import-checkpoint"):
        load_student(tmp_path)


def test_a_checkpoint_whose_tensors_do_not_fit_names_them(tmp_path, student):
    file = save_student(student, tmp_path)
    config = read_config(file)
    tensors = load_file(file)
    del tensors["norms.1.sam.weight"]
    with pytest.raises(SakError, match=r"lacks norms\.1\.sam\.weight"):
        store.student_from_tensors(config, tensors, origin="here")


def test_a_student_from_a_checkpoint_starts_nowhere_else(tmp_path, student):
    config = StudentConfig.from_json(CONFIG.to_json() | {"weights": "checkpoint"})
    with pytest.raises(UsageError, match="came from a checkpoint"):
        build_student(config)
