import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sak.errors import UsageError
from sak.teachers import build_teacher, teacher_recipe
from sak.teachers.weights import WeightsError, check_state, random_state, state_sha256
from sak.weight_files import read_tensors

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -0.5])}


def test_the_three_kinds_of_weights(tmp_path):
    assert teacher_recipe("vit-s").weights == "pretrained"
    assert teacher_recipe("vit-s", weights=tmp_path / "x.pth").weights == str(tmp_path / "x.pth")
    assert teacher_recipe("vit-s", weights="random:7").is_random
    assert not any(teacher_recipe("vit-s", weights=text).is_random for text in ("pretrained", "randomly/named.bin"))


@pytest.mark.parametrize("text", ["random", "random:", "random:x", "random:-1"])
def test_random_needs_a_seed(text):
    with pytest.raises(UsageError, match="random weights need a seed"):
        build_teacher("vit-s", weights=text, device="meta")


def test_the_identity_is_pinned():
    """A change of this digest changes every cache key there is."""
    assert state_sha256(STATE) == "290ede286dd5cd24a9e8044086108871ae2be6a75d715a13b965faed773f73cc"
    by_hand = hashlib.sha256()
    for name, shape, tensor in (("a.bias", "2", STATE["a.bias"]), ("b.weight", "2x3", STATE["b.weight"])):
        by_hand.update(f"{name}|float32|{shape}\n".encode() + tensor.numpy().astype("<f4").tobytes())
    assert by_hand.hexdigest() == state_sha256(STATE)


def test_the_identity_does_not_see_order_format_wrapping_or_widened_halves(tmp_path):
    wanted = state_sha256(STATE)
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(dict(reversed(STATE.items())), tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in STATE.items()}, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"model": STATE}, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    save_file({f"model.{key}": value.half() for key, value in STATE.items()}, tmp_path / "e.safetensors")
    for path in sorted(tmp_path.iterdir()):
        assert state_sha256(read_tensors(path)) == wanted, path.name


@given(st.sampled_from(sorted(STATE)), st.integers(0, 1), st.sampled_from(["value", "name", "shape", "dtype"]))
def test_the_identity_sees_every_change(name, place, change):
    state = {key: value.clone() for key, value in STATE.items()}
    if change == "value":
        state[name].view(-1)[place] += 1e-3
    elif change == "name":
        state[f"{name}x"] = state.pop(name)
    elif change == "shape":
        state[name] = state[name].reshape(1, -1)
    else:
        state[name] = state[name].to(torch.int64)
    assert state_sha256(state) != state_sha256(STATE)


def test_random_weights_depend_on_the_seed_and_the_name_alone():
    shapes = {"x.weight": torch.Size((4, 8)), "y.weight": torch.Size((4, 8))}
    first = random_state(shapes, 0)
    again = random_state(dict(reversed(shapes.items())), 0)
    assert all(torch.equal(first[key], again[key]) for key in shapes)
    assert not torch.equal(first["x.weight"], first["y.weight"])
    assert not torch.equal(first["x.weight"], random_state(shapes, 1)["x.weight"])


def test_random_weights_are_pinned_bit_for_bit():
    shapes = {
        "pos_embed": torch.Size((1, 5, 4)),
        "blocks.0.norm1.weight": torch.Size((4,)),
        "blocks.0.attn.qkv.weight": torch.Size((12, 4)),
        "blocks.0.attn.qkv.bias": torch.Size((12,)),
        "blocks.0.ls1.gamma": torch.Size((4,)),
        "scale": torch.Size(()),
    }
    state = random_state(shapes, 3)
    assert {key: value.shape for key, value in state.items()} == shapes
    assert state_sha256(state) == "e4b470080982908861e644c0a2dcb8245c524dbe396f96c9ba8204544b1de50c"
    assert torch.equal(state["blocks.0.norm1.weight"], torch.ones(4))
    assert torch.equal(state["blocks.0.ls1.gamma"], torch.ones(4))


def test_random_matrices_have_the_deviation_said():
    state = random_state({"a.weight": torch.Size((200, 64)), "pos_embed": torch.Size((1, 200, 64))}, 0)
    assert state["a.weight"].std().item() == pytest.approx(1 / 8, rel=0.03)
    assert state["pos_embed"].std().item() == pytest.approx(0.2, rel=0.03)


def test_wrong_keys_are_named_the_first_few():
    wanted = {f"blocks.{number}.weight": torch.Size((2,)) for number in range(5)}
    state = {f"layers.{number}.weight": torch.zeros(2) for number in range(4)}
    with pytest.raises(
        WeightsError,
        match=r"x: these weights are of another model: the file misses blocks\.0\.weight, blocks\.1\.weight, "
        r"blocks\.2\.weight and 2 more and has layers\.0\.weight, layers\.1\.weight, layers\.2\.weight and 1 more",
    ):
        check_state(state, wanted, loose=(), where="x")


def test_wrong_shapes_are_named_and_only_positions_may_differ():
    wanted = {"pos_embed": torch.Size((1, 50, 8)), "weight": torch.Size((4, 4))}
    check_state(
        {"pos_embed": torch.zeros(1, 26, 8), "weight": torch.zeros(4, 4)}, wanted, loose=("pos_embed",), where="x"
    )
    for state in (
        {"pos_embed": torch.zeros(1, 26, 8), "weight": torch.zeros(4, 5)},
        {"pos_embed": torch.zeros(1, 26, 16), "weight": torch.zeros(4, 4)},
        {"pos_embed": torch.zeros(26, 8), "weight": torch.zeros(4, 4)},
    ):
        with pytest.raises(WeightsError, match=r"is .*, wanted"):
            check_state(state, wanted, loose=("pos_embed",), where="x")
