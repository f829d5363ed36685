"""Learning rates against the published ones, and at their edges."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.train.config import Poly, WarmupCosine
from sak.errors import UsageError


@pytest.fixture(scope="module")
def rates(golden):
    return load_file(golden / "sak/07_lr_schedules.safetensors")


def test_the_cosine_is_the_published_one_at_each_of_600_iterations(rates, golden):
    told = json.loads((golden / "sak/07_lr_schedules.json").read_text())["s1"]
    per_epoch = told["steps_per_epoch"]
    schedule = WarmupCosine(
        iterations=told["max_epochs"] * per_epoch,
        warmup_iterations=told["warmup_epochs"] * per_epoch,
        rate=told["base_lr"],
        final_rate=told["lr_min"],
        warmup_rate=told["warmup_lr_init"],
    )
    expected = rates["s1_lr_used_at_iter"].tolist()
    assert [schedule(k) for k in range(600)] == pytest.approx(expected, rel=1e-12, abs=0)


def test_without_delay_the_cosine_is_the_function_itself_and_stays_at_its_end(rates):
    schedule = WarmupCosine(iterations=600, warmup_iterations=40, delay=0)
    expected = rates["s1_lr_fn_of_t"].tolist()
    assert len(expected) == 620
    assert [schedule(k) for k in range(620)] == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_delayed_schedule_is_the_function_one_iteration_late():
    late, paper = WarmupCosine(100, 10), WarmupCosine(100, 10, delay=0)
    assert [late(k) for k in range(100)] == [paper(max(k - 1, 0)) for k in range(100)]
    assert late(0) == late(1) == 1.25e-7


def test_the_epochwise_cosine_of_the_published_second_stage_is_the_same_function(rates):
    schedule = WarmupCosine(30, 2, rate=2e-5, final_rate=1.25e-6, warmup_rate=1.25e-7)
    expected = rates["s2_cosine_epochwise_lr_used"].tolist()
    assert [schedule(epoch) for epoch in range(30)] == pytest.approx(expected, rel=1e-12, abs=0)


def test_poly_is_the_published_one(rates):
    schedule = Poly(iterations=40_000)
    used = [schedule(k) for k in rates["s2_poly_iters"].tolist()]
    assert used == pytest.approx(rates["s2_poly_lr_used"].tolist(), rel=1e-12, abs=0)


def test_poly_ends_at_zero_and_stays_there():
    schedule = Poly(iterations=10)
    assert schedule(9) > 0
    assert schedule(10) == schedule(11) == 0


@given(st.integers(1, 500), st.data())
def test_rates_stay_within_their_ends_and_fall_after_the_warm_up(iterations, data):
    warmup = data.draw(st.integers(0, iterations - 1))
    schedule = WarmupCosine(iterations, warmup, delay=0)
    rates = [schedule(k) for k in range(iterations + 3)]
    assert all(1.25e-7 <= rate <= 1e-3 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize(("iterations", "warmup"), [(20, 20), (10, 40), (0, 0), (10, -1)])
def test_a_warm_up_that_does_not_fit_is_refused(iterations, warmup):
    with pytest.raises(UsageError, match=f"warm-up of {warmup} iterations does not fit into a run of {iterations}"):
        WarmupCosine(iterations, warmup)


def test_other_impossible_schedules_are_refused():
    with pytest.raises(UsageError, match="delay is -1"):
        WarmupCosine(10, 1, delay=-1)
    with pytest.raises(UsageError, match="at least one iteration"):
        Poly(0)
