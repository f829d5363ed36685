import torch

from sak.student.aligner import linear_aligners, output_norms


def test_there_is_one_norm_per_level_and_teacher_with_epsilon_1e_minus_5():
    norms = output_norms(("a", "b"), {3: 8, 6: 8})
    assert set(norms.state_dict()) == {
        f"{level}.{name}.{leaf}" for level in (3, 6) for name in "ab" for leaf in ("weight", "bias")
    }
    assert {module.eps for module in norms.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
    tokens = torch.randn(2, 5, 8) * 3 + 1
    torch.testing.assert_close(norms.at(6, "b", tokens), torch.nn.functional.layer_norm(tokens, (8,), eps=1e-5))


def test_aligners_are_linear_maps_to_each_teachers_width():
    aligners = linear_aligners({"a": 4, "b": 8}, {3: 8, 6: 8})
    tokens = torch.randn(2, 5, 8)
    assert aligners.at(3, "a", tokens).shape == (2, 5, 4)
    weight, bias = aligners["6"]["b"].weight, aligners["6"]["b"].bias
    torch.testing.assert_close(aligners.at(6, "b", tokens), tokens @ weight.T + bias)
