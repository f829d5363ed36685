"""The loop on a toy model: exact resume, stopping, best and last, accumulation, EMA, NaN, schedule."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.train.checkpoint import CheckpointError
from pipeline.train.config import OptimiserConfig, WarmupCosine, make_optimiser, set_rate
from pipeline.train.protocols import TrainingError
from pipeline.train.resume import Progress


def weights(fit):
    return {name: tensor.clone() for name, tensor in fit.plain.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_before(step):
    def on_batch(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_batch


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9, "accumulate": 2, "clip_norm": 0.5}], ids=["plain", "all options"]
)
def test_twenty_steps_are_seven_a_signal_and_thirteen_more_bit_for_bit(toy, settings):
    straight = toy.fit("straight", **settings)
    straight()
    first = toy.fit("parts", source=toy.source(on_batch=stop_before(6)), **settings)
    stopped = first()
    assert (stopped.step, stopped.stopped, stopped.signal) == (7, True, signal.SIGTERM)
    torch.manual_seed(99)  # whatever happened in between
    second = toy.fit("parts", resume=True, **settings)
    result = second()
    assert (result.step, result.stopped, result.signal) == (20, False, None)
    assert toy.losses("parts") == toy.losses("straight")
    assert same(weights(second), weights(straight))
    if "ema" in settings:
        assert same(second.ema.model.state_dict(), straight.ema.model.state_dict())
        saved = load_file(result.checkpoint / "ema" / "model.safetensors")
        assert same(saved, straight.ema.model.state_dict())


def test_a_run_killed_between_checkpoints_makes_the_lost_steps_again(toy):
    class KilledError(BaseException):
        pass

    def die(step):
        if step == 9:
            raise KilledError

    straight = toy.fit("straight", checkpoint_every=7)
    straight()
    with pytest.raises(KilledError):
        toy.fit("killed", source=toy.source(on_batch=die), checkpoint_every=7)()
    assert list(toy.losses("killed")) == list(range(1, 10))
    second = toy.fit("killed", resume=True, checkpoint_every=7)
    assert second.step == 7
    second()
    assert toy.losses("killed") == toy.losses("straight")
    assert same(weights(second), weights(straight))


def test_a_second_ctrl_c_interrupts_at_once(toy):
    def twice(step):
        if step in (2, 3):
            os.kill(os.getpid(), signal.SIGINT)

    fit = toy.fit(source=toy.source(on_batch=twice))
    assert fit().step == 3

    def both(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy.fit("other", source=toy.source(on_batch=both))()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_rates_used_are_those_of_the_schedule_at_each_step(toy):
    fit = toy.fit(steps=12)
    fit()
    used = [line["learning_rate"] for line in fit.run.metrics()]
    assert used == [WarmupCosine(12, 2)(step) for step in range(12)]


def test_the_published_rates_come_out_of_the_loop(toy, golden):
    told = json.loads((golden / "sak/07_lr_schedules.json").read_text())["s1"]
    expected = load_file(golden / "sak/07_lr_schedules.safetensors")["s1_lr_used_at_iter"].tolist()
    fit = toy.fit(
        source=toy.source(steps_per_epoch=told["steps_per_epoch"]),
        steps=None,
        epochs=told["max_epochs"],
        schedule={"warmup_epochs": told["warmup_epochs"]},
    )
    assert fit.total == 600
    used = []
    fit.optimiser.register_step_pre_hook(lambda optimiser, *rest: used.append(optimiser.param_groups[0]["lr"]))
    fit.log.record = lambda *given: None
    fit()
    assert used == pytest.approx(expected, rel=1e-12, abs=0)


def test_accumulated_parts_give_the_losses_of_the_whole_batch(toy):
    def model():
        plain = toy.model()
        plain.net[1].p = 0.0
        return plain

    toy.fit("whole", model=model())()
    toy.fit("parts", model=model(), accumulate=4)()
    assert list(toy.losses("parts").values()) == pytest.approx(list(toy.losses("whole").values()), rel=1e-5)


def test_the_average_is_that_of_its_formula(toy):
    fit = toy.fit(steps=5, ema=0.8)
    seen = [weights(fit)]
    fit.optimiser.register_step_post_hook(lambda *rest: seen.append(weights(fit)))
    fit()
    expected = seen[0]
    for now in seen[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in expected}
    for name, tensor in fit.ema.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_loss_that_is_not_finite_stops_with_the_keys_of_its_batch_and_leaves_the_last_checkpoint(toy):
    fit = toy.fit(source=toy.source(poison=5), checkpoint_every=2)
    with pytest.raises(
        TrainingError, match=r"step 6: the loss is not finite; the batch held k5-0, k5-1, .* lower the rate"
    ) as told:
        fit()
    assert "\n" not in str(told.value)
    assert (fit.run.checkpoints / "last").resolve().name == "step-00000004"


def test_weights_that_are_not_finite_are_not_saved(toy):
    fit = toy.fit(steps=4)
    last = fit().checkpoint.resolve()
    with torch.no_grad():
        next(fit.plain.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(TrainingError, match=r"step 9: 1 of \d+ weights are not finite, first .*; nothing was saved"):
        fit.saver.save(Progress(9))
    assert (toy.root / "run/checkpoints/last").resolve() == last
    assert not list((toy.root / "run/checkpoints").glob("*9*"))


def test_the_start_of_the_readers_is_no_wait_for_data(toy):
    import time

    fit = toy.fit(source=toy.source(on_batch=lambda step: time.sleep(0.5 if step == 0 else 0.0)), steps=4, log_every=4)
    assert fit().metrics["data_wait"] < 0.9  # of some milliseconds; with the start it would be 0.99


def test_flags_read_a_step_late_still_stop_before_anything_is_saved(toy):
    fit = toy.fit(source=toy.source(poison=5), checkpoint_every=6)
    fit.agreement._lag = 1  # as on an accelerator
    with pytest.raises(TrainingError, match=r"step 6: .* k5-0"):
        fit()
    assert not (fit.run.checkpoints / "last").exists()
    late = toy.fit("late", source=toy.source(on_batch=stop_before(6)))
    late.agreement._lag = 1
    assert late().step == 8
    assert (late.run.checkpoints / "last").resolve().name == "step-00000008"


def test_best_is_where_the_measure_was_best_and_other_checkpoints_go(toy):
    found = {0: 9.0, 4: 0.2, 8: 0.7, 12: 0.5, 16: 0.6, 20: 0.1}
    hooks = {"evaluate": lambda model, step: {"score": found[step]}, "best": "score", "best_is_lower": False,
             "evaluate_first": True}  # fmt: skip
    fit = toy.fit(evaluate_every=4, checkpoint_every=3, hooks=hooks)
    fit()
    assert {path.name for path in fit.run.checkpoints.iterdir()} == {"best", "last", "step-00000008", "step-00000020"}
    assert (fit.run.checkpoints / "best").resolve().name == "step-00000008"
    assert [line["score"] for line in fit.run.metrics() if line.get("evaluation")] == list(found.values())


def test_a_measurement_that_a_stop_put_off_is_made_when_the_run_goes_on(toy):
    hooks = {"evaluate": lambda model, step: {"score": float(step)}, "best": "score", "best_is_lower": False}
    first = toy.fit(source=toy.source(on_batch=stop_before(7)), evaluate_every=8, hooks=hooks)
    assert first().step == 8
    assert not [line for line in first.run.metrics() if line.get("evaluation")]
    second = toy.fit(resume=True, evaluate_every=8, hooks=hooks)
    second()
    assert [line["step"] for line in second.run.metrics() if line.get("evaluation")] == [8, 16, 20]


def test_evaluation_is_in_eval_mode_and_changes_nothing_of_the_training(toy):
    def evaluate(model, step):
        assert not model.training
        return {"score": 0.0}

    toy.fit("without")()
    fit = toy.fit("with", evaluate_every=3, hooks={"evaluate": evaluate, "best": "score"})
    fit()
    assert fit.plain.training
    assert toy.losses("with") == toy.losses("without")


def test_a_finished_run_that_is_resumed_stays_as_it_is(toy):
    toy.fit(steps=3)()
    before = toy.losses()
    assert toy.fit(steps=3, resume=True)().step == 3
    assert toy.losses() == before


def test_a_run_without_checkpoint_cannot_be_resumed(toy):
    toy.fit()
    with pytest.raises(CheckpointError, match=r"has no checkpoint yet; start it again with --overwrite"):
        toy.fit(resume=True)


def test_every_batch_is_released(toy):
    source = toy.source()
    toy.fit(source=source, steps=5)()
    assert [keys[0] for keys in source.released] == [f"k{n}-0" for n in range(5)]


def test_half_precision_trains_and_keeps_float32_weights(toy):
    fit = toy.fit(precision="bf16", steps=30, optimiser={"rate": 0.03})
    fit()
    losses = list(toy.losses().values())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert {tensor.dtype for tensor in fit.plain.state_dict().values()} == {torch.float32}


@pytest.mark.slow
def test_the_compiled_model_has_the_losses_of_the_plain_one(toy):
    def model():
        plain = toy.model()
        plain.net[1].p = 0.0
        return plain

    toy.fit("plain", model=model(), steps=5)()
    fit = toy.fit("compiled", model=model(), steps=5, compile=True)
    fit()
    assert list(toy.losses("compiled").values()) == pytest.approx(list(toy.losses("plain").values()), rel=1e-5)
    assert (fit.run.checkpoints / "last" / "model.safetensors").is_file()


def test_progress_and_the_warning_of_waiting_name_the_remedy(toy):
    import time

    shown, said = [], []
    hooks = {"progress": lambda done, total, note="": shown.append((done, total, note)), "say": said.append,
             "remedy": lambda: "raise data.workers (0)"}  # fmt: skip
    toy.fit(source=toy.source(on_batch=lambda step: time.sleep(0.01)), steps=4, hooks=hooks)()
    assert [each[:2] for each in shown] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "images/s, data wait" in shown[-1][2]
    assert "loss" in shown[-1][2]
    assert len(said) == 1
    assert said[0].endswith("% of the time is spent waiting for data: raise data.workers (0)")


def test_a_run_that_dies_while_measuring_has_lost_no_step_and_measures_again(toy):
    class KilledError(BaseException):
        pass

    def score(step):
        return {"score": float(step)}

    def dying(model, step):
        if step == 8:
            raise KilledError
        return score(step)

    rules = {"best": "score", "best_is_lower": False}
    with pytest.raises(KilledError):
        toy.fit(evaluate_every=4, hooks={"evaluate": dying, **rules})()
    second = toy.fit(evaluate_every=4, resume=True, hooks={"evaluate": lambda model, step: score(step), **rules})
    assert second.step == 8
    second()
    straight = toy.fit("straight", evaluate_every=4, hooks={"evaluate": lambda model, step: score(step), **rules})
    straight()
    assert toy.losses() == toy.losses("straight")
    measured = [line["step"] for line in second.run.metrics() if line.get("evaluation")]
    assert measured == [4, 8, 12, 16, 20]
    assert (second.run.checkpoints / "best").resolve().name == "step-00000020"
    again = toy.fit(evaluate_every=4, resume=True, hooks={"evaluate": dying, **rules})
    assert (again.evaluated, again.best) == (20, 20.0)


def test_a_checkpoint_of_other_processes_goes_on_with_new_draws_and_says_so(toy):
    first = toy.fit(source=toy.source(on_batch=stop_before(6)))
    last = first().checkpoint.resolve()
    (last / "random-1.safetensors").write_bytes((last / "random-0.safetensors").read_bytes())
    said = []
    second = toy.fit(resume=True, hooks={"say": said.append})
    assert said == ["processes: 2 until step 7, 1 from here on; batches are the same, sums are rounded differently, "
                    "random draws (noise, dropout) are new"]  # fmt: skip
    assert second().step == 20


def test_checkpoints_are_told_of_when_they_are_whole(toy):
    seen = []
    fit = toy.fit(steps=9, checkpoint_every=4, hooks={"saved": lambda: seen.append(sorted(
        path.name for path in (toy.root / "run/checkpoints").glob("step-*")))})  # fmt: skip
    fit()
    assert seen == [["step-00000004"], ["step-00000008"], ["step-00000009"]]


def test_parts_of_a_model_learn_at_their_share_of_the_rate():
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "heads": nn.Linear(2, 2), "norms": nn.Linear(2, 2)})
    assert len(make_optimiser(model, OptimiserConfig(), shares={"stem": 1.0}).param_groups) == 1
    optimiser = make_optimiser(model, OptimiserConfig(), shares={"stem": 0.1, "norms": 0.1, "paths": 0.1})
    set_rate(optimiser, 0.5)
    rates = {id(each): group["lr"] for group in optimiser.param_groups for each in group["params"]}
    assert {name: rates[id(each)] for name, each in model.named_parameters() if name.endswith("bias")} == pytest.approx(
        {"stem.bias": 0.05, "heads.bias": 0.5, "norms.bias": 0.05}
    )
