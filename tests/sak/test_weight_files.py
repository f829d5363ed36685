"""Weight files: what is read, what is taken off, and what is refused in one line."""

import hashlib
import zipfile

import pytest
import torch

from sak.errors import UsageError
from sak.weight_files import WeightsError, random_seed, read_tensors

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -0.5])}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module"])
def test_wrappers_and_shared_prefixes_are_taken_off_and_the_order_stays(tmp_path, wrapper):
    torch.save({wrapper: {f"module.{key}": value for key, value in STATE.items()}, "epoch": 3}, tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert list(found) == list(STATE)
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_a_prefix_that_not_all_keys_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pth")
    assert list(read_tensors(tmp_path / "x.pth")) == ["module.a", "b"]


@pytest.mark.parametrize(("value", "told"), [([1, 2], "a list, not a state dict"), ({}, "holds no tensors")])
def test_what_is_no_state_dict_is_refused(tmp_path, value, told):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=told):
        read_tensors(tmp_path / "x.pth")


def test_random_weights_are_known_by_their_seed():
    assert random_seed("random:7") == 7
    assert random_seed("pretrained") is None
    assert random_seed("randomly/named.pth") is None


@pytest.mark.parametrize("weights", ["random", "random:", "random:-1", "random:x"])
def test_random_weights_need_a_seed(weights):
    with pytest.raises(UsageError, match="random:SEED"):
        random_seed(weights)


def test_a_missing_file_says_what_weights_can_be(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such weights file; weights are 'pretrained'"):
        read_tensors(tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=name) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_a_truncated_torch_file_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        read_tensors(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.zeros(1), "object": hashlib.sha256}, path)
    with pytest.raises(WeightsError, match="holds objects other than tensors, which are never loaded") as error:
        read_tensors(path)
    assert "weights_only" not in str(error.value)


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(WeightsError, match="TorchScript archive"):
        read_tensors(path)


def test_tensors_without_names_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({0: torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="holds 0 beside tensors; weights are a state dict"):
        read_tensors(path)


def test_a_file_with_more_than_tensors_names_what_it_holds(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.zeros(1), "epoch": 3, "args": {"lr": 0.1}}, path)
    with pytest.raises(WeightsError, match="holds epoch, args beside tensors"):
        read_tensors(path)
