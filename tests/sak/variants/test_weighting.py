"""Loss weightings: what makes each what it is."""

import pytest
import torch

from sak.errors import UsageError
from sak.variants.weighting import make_weighting

FIXED = {"semseg": 1.0, "edge": 50.0, "depth": 2.0}


def losses(*values):
    return {task: torch.tensor(value, requires_grad=True) for task, value in zip(FIXED, values, strict=True)}


def make(kind, **options):
    return make_weighting(kind, FIXED, **{"steps": 2, "seed": 3, **options})


def test_fixed_are_the_tables():
    terms = make("fixed")(losses(1.0, 2.0, 3.0))
    assert {task: term.item() for task, term in terms.items()} == {"semseg": 1.0, "edge": 100.0, "depth": 6.0}


def test_uncertainty_weights_move_towards_one_over_the_loss():
    """exp(-s) L + s is least at s = log L: the weight is then 1 / L."""
    weighting = make("uncertainty")
    optimiser = torch.optim.SGD(weighting.parameters(), lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        torch.stack(list(weighting(losses(0.5, 2.0, 4.0)).values())).sum().backward()
        optimiser.step()
    found = weighting.weights(losses(0.5, 2.0, 4.0))
    for task, loss in zip(FIXED, (0.5, 2.0, 4.0), strict=True):
        assert found[task].item() == pytest.approx(1 / loss, rel=1e-3)


def test_uncertainty_starts_with_all_weights_one_and_its_terms_reach_loss_and_variance():
    weighting, given = make("uncertainty"), losses(1.0, 2.0, 3.0)
    torch.stack(list(weighting(given).values())).sum().backward()
    assert [loss.grad.item() for loss in given.values()] == [1.0, 1.0, 1.0]
    assert {task: s.grad.item() for task, s in weighting.log_variances.items()} == {
        "semseg": 0.0,
        "edge": -1.0,
        "depth": -2.0,
    }


def test_dwa_weighs_by_the_ratio_of_the_last_two_epochs():
    weighting = make("dwa", temperature=2.0)
    for values in ((4.0, 1.0, 2.0), (2.0, 1.0, 4.0)):  # epoch 1: means 3, 1, 3
        terms = weighting(losses(*values))
        assert terms["semseg"].item() == values[0]
    for _ in range(2):  # epoch 2: means 1.5, 1, 6
        weighting(losses(1.5, 1.0, 6.0))
    ratios = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    expected = 3 * (ratios / 2).softmax(0)
    found = weighting.weights(losses(1.0, 1.0, 1.0))
    for task, weight in zip(FIXED, expected.tolist(), strict=True):
        assert float(found[task]) == pytest.approx(weight)
    assert sum(map(float, found.values())) == pytest.approx(3)


def test_dwas_means_are_those_of_all_processes():
    weighting = make("dwa", average=lambda value: value + 1)
    for _ in range(2):
        weighting(losses(3.0, 1.0, 3.0))
    assert weighting.last.tolist() == [4.0, 2.0, 4.0]


def test_rlws_weights_are_softmax_of_normal_numbers_with_mean_one():
    weighting = make("rlw")
    draws = []
    for _ in range(3000):
        draws.append([float(weight) for weight in weighting.weights(losses(1.0, 1.0, 1.0)).values()])
        weighting(losses(1.0, 1.0, 1.0))
    found = torch.tensor(draws)
    torch.testing.assert_close(found.sum(1), torch.full((3000,), 3.0))
    torch.testing.assert_close(found.mean(0), torch.ones(3), rtol=0, atol=0.05)
    reference = 3 * torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.testing.assert_close(found.std(0), reference.std(0), rtol=0, atol=0.05)


def test_rlw_is_alike_in_every_process_and_after_a_resume():
    one, other = make("rlw"), make("rlw")
    for _ in range(5):
        one(losses(1.0, 1.0, 1.0))
    other.load_state_dict(one.state_dict())
    assert one.weights(losses(1.0, 1.0, 1.0)) == other.weights(losses(1.0, 1.0, 1.0))
    assert one.weights(losses(1.0, 1.0, 1.0)) != make("rlw").weights(losses(1.0, 1.0, 1.0))


@pytest.mark.parametrize("kind", ["fixed", "uncertainty", "dwa", "rlw"])
def test_a_weighting_goes_on_from_its_state(kind):
    whole, part = make(kind), make(kind)
    for step in range(5):
        whole(losses(1.0 + step, 2.0, 3.0 - step / 4))
    resumed = make(kind)
    for step in range(3):
        part(losses(1.0 + step, 2.0, 3.0 - step / 4))
    resumed.load_state_dict(part.state_dict())
    for step in range(3, 5):
        resumed(losses(1.0 + step, 2.0, 3.0 - step / 4))
    assert resumed.weights(losses(1.0, 1.0, 1.0)) == whole.weights(losses(1.0, 1.0, 1.0))


def test_an_unknown_weighting_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="no loss weighting 'gradnorm'; known: fixed, uncertainty, dwa, rlw"):
        make("gradnorm")
