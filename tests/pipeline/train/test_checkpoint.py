"""Checkpoints are whole or not there, and hold everything."""

import errno
import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.train import checkpoint
from pipeline.train.checkpoint import (
    CheckpointError,
    TrainingState,
    change_values,
    load_optimiser,
    new_checkpoint,
    optimiser_state,
    point,
    random_state,
    read_state,
    remove_unused,
    seed_anew,
    set_random_state,
    step_folder,
    write_state,
)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def write(checkpoints, step, value=1.0):
    with new_checkpoint(checkpoints, step) as folder:
        write_state(folder, TrainingState(step, {"a": torch.tensor([value])}, {"best": None}))
    point(checkpoints, "last", step_folder(checkpoints, step))


@pytest.mark.parametrize("place", ["filling", "syncing", "renaming"])
def test_a_save_that_is_killed_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, place):
    write(tmp_path, 4)

    def die(*given, **named):
        raise KilledError

    if place == "filling":
        monkeypatch.setattr(checkpoint, "save_file", die)
    elif place == "syncing":
        monkeypatch.setattr(checkpoint, "fsync_folder", die)
    else:
        monkeypatch.setattr(type(tmp_path), "replace", die)
    with pytest.raises(KilledError):
        write(tmp_path, 8)
    monkeypatch.undo()
    assert not step_folder(tmp_path, 8).exists()
    assert read_state((tmp_path / "last").resolve()).step == 4
    write(tmp_path, 8)
    remove_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000008"]


def test_a_checkpoint_that_a_kill_left_without_a_link_is_replaced(tmp_path):
    with new_checkpoint(tmp_path, 8) as folder:
        write_state(folder, TrainingState(8, {"a": torch.tensor([1.0])}))
    write(tmp_path, 8, value=2.0)
    assert read_state(tmp_path / "last").tensors["a"].item() == 2.0


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step-00000008 cannot be written .*No space left.*make room") as told:
        write(tmp_path, 8)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    write(tmp_path, 4)
    folder = tmp_path / "step-00000004"
    if damage == "cut":
        (folder / "training.safetensors").write_bytes(b"123")
    elif damage == "gone":
        (folder / "training.json").unlink()
    else:
        (folder / "training.json").write_text(json.dumps({"format": "something"}))
    with pytest.raises(CheckpointError, match="step-00000004") as told:
        read_state(folder)
    assert "\n" not in str(told.value)
    assert damage == "other" or "there is no other, start anew" in str(told.value)


def test_a_damaged_checkpoint_names_the_one_to_go_on_from(tmp_path):
    write(tmp_path, 4)
    write(tmp_path, 8)
    (tmp_path / "step-00000008/training.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match=r"step-00000008 is not .*make .*/last a link to step-00000004"):
        read_state((tmp_path / "last").resolve())


def test_values_of_a_checkpoint_change_whole(tmp_path, monkeypatch):
    write(tmp_path, 4)
    change_values(tmp_path / "step-00000004", best=0.5, evaluated=4)
    assert read_state(tmp_path / "last").values == {"best": 0.5, "evaluated": 4}
    monkeypatch.setattr(type(tmp_path), "replace", lambda *given: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        change_values(tmp_path / "step-00000004", best=0.6)
    assert read_state(tmp_path / "last").values["best"] == 0.5


def test_a_removal_that_is_killed_leaves_no_half_checkpoint_under_its_name(tmp_path, monkeypatch):
    write(tmp_path, 4)
    write(tmp_path, 8)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *given: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        remove_unused(tmp_path)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000008"]
    monkeypatch.undo()
    write(tmp_path, 12)
    remove_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000012"]


def test_an_optimiser_comes_back_exactly_through_a_file(tmp_path):
    def made():
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def advance(model, optimiser, steps):
        for number in range(steps):
            optimiser.zero_grad()
            model(torch.full((1, 3), float(number))).sum().backward()
            optimiser.step()

    model, optimiser = made()
    advance(model, optimiser, 3)
    tensors, values = optimiser_state(optimiser)
    write_state(tmp_path, TrainingState(3, tensors, {"optimiser": values}))
    other, restored = made()
    other.load_state_dict(model.state_dict())
    state = read_state(tmp_path)
    load_optimiser(restored, state.tensors, state.values["optimiser"])
    advance(model, optimiser, 2)
    advance(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_optimiser_of_another_model_is_refused(tmp_path):
    small, large = (torch.optim.AdamW(torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 1 + extra).parameters())
                    for extra in ([], [torch.nn.Linear(2, 2)]))  # fmt: skip
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_optimiser(large, *optimiser_state(small))


def test_random_generators_come_back_exactly_through_a_file(tmp_path):
    def draws():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    random.gauss(0, 1)  # leaves a second draw behind
    np.random.randn()
    save_file(random_state(), tmp_path / "random.safetensors")
    expected = draws()
    draws()
    set_random_state(load_file(tmp_path / "random.safetensors"))
    assert draws() == expected


def test_new_generators_follow_from_seed_step_and_process_alone():
    def drawn(*given):
        seed_anew(*given)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = drawn(0, 7, 1)
    assert drawn(0, 7, 1) == first
    others = [drawn(1, 7, 1), drawn(0, 8, 1), drawn(0, 7, 0)]
    assert all(a != b for other in others for a, b in zip(other, first, strict=True))
