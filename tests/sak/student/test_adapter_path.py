import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sak.student.adapter_path import Adapter, AdapterPaths

LEVELS = (1, 2, 3)


def paths_of(count, dtype=torch.float64, **options):
    torch.manual_seed(count)
    paths = AdapterPaths([f"teacher{i}" for i in range(count)], width=8, depth=3, hidden=2, **options).to(dtype)
    with torch.no_grad():
        for parameter in paths.parameters():  # away from the small start, so that every term counts
            parameter.add_(torch.randn_like(parameter))
    return paths


def stem_tokens(dtype=torch.float64, **options):
    return [torch.randn(2, 5, 8, dtype=dtype, **options) for _ in range(4)]


def test_an_adapter_is_equation_3():
    adapter, tokens = Adapter(8, 2).double(), torch.randn(3, 8, dtype=torch.float64)
    with torch.no_grad():
        adapter.scale.fill_(0.7)
        hidden = F.gelu(tokens @ adapter.down.weight.T + adapter.down.bias)
        expected = 0.7 * (hidden @ adapter.up.weight.T + adapter.up.bias) + tokens
        torch.testing.assert_close(adapter(tokens), expected)


def test_adapters_start_with_scale_one_small_weights_and_no_bias():
    adapter = Adapter(256, 64)
    assert adapter.scale.tolist() == [1.0]
    assert not adapter.down.bias.any()
    assert not adapter.up.bias.any()
    for linear in (adapter.down, adapter.up):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_path_is_equation_2():
    paths, tokens = paths_of(1), stem_tokens()
    adapters = paths["teacher0"]
    expected = adapters[0](tokens[0])
    for adapter, z in zip(adapters[1:], tokens[1:], strict=True):
        expected = adapter(expected + z)
    torch.testing.assert_close(paths(tokens, (3,))[0][0], expected)


@given(st.integers(1, 4), st.sampled_from([(3,), (1, 3), (0, 1, 2, 3)]))
def test_stacked_evaluation_equals_one_adapter_after_another(count, levels):
    paths, tokens = paths_of(count), stem_tokens()
    stacked = paths(tokens, levels)
    paths.stacked = False
    for one, other in zip(stacked, paths(tokens, levels), strict=True):
        assert one.shape == (count, 2, 5, 8)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_stacked_gradients_equal_those_of_one_adapter_after_another():
    gradients = []
    for stacked in (True, False):
        paths, tokens = paths_of(3), [z.requires_grad_() for z in torch.ones(4, 2, 5, 8, dtype=torch.float64).unbind()]
        paths.stacked = stacked
        sum(path.sin().sum() for path in paths(tokens, LEVELS)).backward()
        gradients.append([leaf.grad for leaf in (*paths.parameters(), *tokens)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_one_teachers_loss_leaves_the_other_teachers_paths_without_any_gradient():
    paths = paths_of(3, dtype=torch.float32)
    sum(path[1].square().sum() for path in paths(stem_tokens(torch.float32), LEVELS)).backward()
    for name, parameter in paths.named_parameters():
        own = name.startswith("teacher1.")
        assert bool(parameter.grad.any()) == own, name


def test_the_state_dict_is_per_teacher():
    keys = paths_of(2).state_dict().keys()
    leaves = ("scale", "down.weight", "down.bias", "up.weight", "up.bias")
    assert set(keys) == {f"teacher{i}.{block}.{leaf}" for i in (0, 1) for block in range(4) for leaf in leaves}


def test_gradient_checkpointing_changes_no_number():
    results = []
    for again in (False, True):
        paths = paths_of(2, gradient_checkpointing=again).train()
        tokens = [torch.full((2, 5, 8), float(i), dtype=torch.float64, requires_grad=True) for i in range(4)]
        out = paths(tokens, LEVELS)
        sum(path.sin().sum() for path in out).backward()
        results.append([*out, *(parameter.grad for parameter in paths.parameters()), *(z.grad for z in tokens)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_residual_keeps_float32_under_autocast():
    paths = paths_of(2, dtype=torch.float32)
    with torch.no_grad():
        for parameter in paths.parameters():
            parameter.zero_()
    tokens = stem_tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = paths(tokens, (3,))[0]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], sum(tokens), rtol=1e-6, atol=1e-6)
