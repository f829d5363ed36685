"""Distillation on two processes (gloo): the losses of one, and an exact resume after one of them was told to stop."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.distill import run_distill
from pipeline.training.run import RunDirectory
from sak.checkpoints import load_student

WORKER = Path(__file__).with_name("distill_worker.py")


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def losses(folder):
    return [line["loss"] for line in RunDirectory(folder).metrics() if "loss" in line]


@pytest.fixture(scope="module")
def two(small_world, tiny_recipe, tmp_path_factory):
    """The folder in which two processes have run, and the recipe's file."""
    out = tmp_path_factory.mktemp("two")
    recipe = out / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
                   "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    command = [sys.executable, str(WORKER), str(small_world.cache), str(out), str(recipe), "1"]
    started = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=WORKER.parents[2],
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=280)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)[-4000:]
    return out, recipe


@pytest.mark.slow
def test_all_processes_stop_at_the_step_at_which_one_was_told_to(two):
    assert [(two[0] / f"steps-{rank}.txt").read_text() for rank in (0, 1)] == ["[20, 7, 20]"] * 2


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(two):
    straight, parts = two[0] / "straight", two[0] / "parts"
    assert losses(parts) == losses(straight)
    mine, theirs = (load_student(folder / "checkpoints/last").state_dict() for folder in (parts, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(two, small_world):
    out, recipe = two
    run_distill(str(small_world.cache), out / "one", config=recipe, steps=20, batch_size=8, device="cpu")
    assert losses(out / "straight") == pytest.approx(losses(out / "one"), rel=1e-5)
