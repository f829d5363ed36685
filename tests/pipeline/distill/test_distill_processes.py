"""Distillation in processes of its own: two of them (gloo), with others than before, and killed ones."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.distill.stage import distill, distill_config
from pipeline.train.run import RunDirectory, RunOptions, Start
from sak.checkpoints.store import load_student

WORKER = Path(__file__).with_name("distill_worker.py")
ROOT = WORKER.parents[2]
STEPS = {"steps": 20, "batch_size": 8, "device": "cpu"}


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def losses(folder):
    return [line["loss"] for line in RunDirectory(folder).metrics() if "loss" in line]


def have_the_same_weights(one, other):
    mine, theirs = (load_student(folder / "checkpoints/last").state_dict() for folder in (one, other))
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


def work(what, cache, out, recipe, *, processes=1):
    """Exit codes and errors of the processes that do `what`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
                        "LOCAL_WORLD_SIZE": str(processes)}  # fmt: skip
    command = [sys.executable, str(WORKER), str(cache), str(out), str(recipe), what]
    started = [
        subprocess.Popen(
            command,
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(processes)
    ]
    errors = [process.communicate(timeout=280)[1] for process in started]
    return [process.returncode for process in started], "\n".join(errors)[-4000:]


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


@pytest.fixture(scope="module")
def straight(small_world, recipe, tmp_path_factory):
    """Twenty steps of one process, with nothing in between."""
    out = tmp_path_factory.mktemp("one") / "straight"
    distill(distill_config(cache=str(small_world.cache), config=recipe, **STEPS), out)
    return out


@pytest.fixture(scope="module")
def two(small_world, recipe, tmp_path_factory):
    """The folder in which two processes have run, some of it after one."""
    out = tmp_path_factory.mktemp("two")
    codes, errors = work("stopped", small_world.cache, out / "more", recipe)
    assert codes == [0], errors
    codes, errors = work("together", small_world.cache, out, recipe, processes=2)
    assert codes == [0, 0], errors
    return out


@pytest.mark.slow
def test_all_processes_stop_at_the_step_at_which_one_was_told_to(two):
    assert [(two / f"steps-{rank}.txt").read_text() for rank in (0, 1)] == ["[20, 7, 20, 20, 7]"] * 2


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(two):
    assert losses(two / "parts") == losses(two / "straight")
    assert have_the_same_weights(two / "parts", two / "straight")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(two, straight):
    assert losses(two / "straight") == pytest.approx(losses(straight), rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_more_or_fewer_processes_on_the_same_batches_and_says_so(two, straight, small_world, recipe):
    said = []
    asked = distill_config(cache=str(small_world.cache), config=recipe, **STEPS)
    distill(asked, two / "fewer", RunOptions(Start(resume=True), say=said.append))
    assert [line for line in said if line.startswith("processes")] == [
        "processes: 2 until step 7, 1 from here on; batches are the same, sums are rounded differently, random draws "
        "(noise, dropout) are new"
    ]
    assert losses(two / "fewer") == pytest.approx(losses(straight), rel=1e-5)
    assert "processes: 1 until step 7, 2 from here on" in (two / "more/train.log").read_text()
    assert losses(two / "more") == pytest.approx(losses(straight), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "saved"), [("killed_in_a_step", 6), ("killed_while_saving", 6)])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint_bit_for_bit(
    what, saved, straight, small_world, recipe, tmp_path
):
    out = tmp_path / "run"
    codes, errors = work(what, small_world.cache, out, recipe)
    assert codes == [-signal.SIGKILL], errors
    assert (out / "checkpoints/last").resolve().name == f"step-{saved:08d}"
    every = ["training.checkpoint_every=3"]
    asked = distill_config(cache=str(small_world.cache), config=recipe, overrides=every, **STEPS)
    distill(asked, out, RunOptions(Start(resume=True)))
    assert losses(out) == losses(straight)
    assert have_the_same_weights(out, straight)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last", "step-00000020"}


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def kill_after(process, folder, more, seconds):
    """SIGKILL, `seconds` after so many `more` measurements have been written; False where the process ended before."""
    wanted = lines(folder) + more
    while process.poll() is None and lines(folder) < wanted:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_storm_of_kills_changes_nothing(small_world, recipe, tmp_path):
    """The command itself, killed at random moments, and started again until it is done."""
    command = [sys.executable, "-m", "cli", "distill", "--cache", str(small_world.cache), "--config", str(recipe),
               "--val-cache", str(small_world.val_cache), "--device", "cpu", "--steps", "160", "--set",
               "training.checkpoint_every=5", "--set", "training.evaluate_every=20", "--out"]  # fmt: skip
    straight, out = tmp_path / "straight", tmp_path / "storm"
    subprocess.run([*command, str(straight)], check=True, cwd=ROOT, capture_output=True)
    draws, kills = random.Random(0), 0
    for _ in range(60):
        start = "--resume" if (out / "checkpoints/last").exists() else "--overwrite"
        process = subprocess.Popen([*command, str(out), start], cwd=ROOT, stderr=subprocess.DEVNULL)
        if not kill_after(process, out, draws.randint(0, 40), draws.uniform(0, 0.2)):
            assert process.returncode == 0
            break
        kills += 1
    assert kills >= 4
    timed = ("images_per_second", "data_wait")
    mine, theirs = (
        [{name: value for name, value in line.items() if name not in timed} for line in RunDirectory(each).metrics()]
        for each in (out, straight)
    )
    assert mine == theirs
    assert have_the_same_weights(out, straight)
    for link in ("last", "best"):
        ends = {(folder / "checkpoints" / link).resolve().name for folder in (out, straight)}
        assert len(ends) == 1
