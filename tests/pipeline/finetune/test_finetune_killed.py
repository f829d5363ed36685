"""A fine-tuning killed by SIGKILL, in a step or while it saves, goes on from its last whole checkpoint bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.finetune.stage import finetune, finetune_config
from pipeline.train.run import RunDirectory, RunOptions, Start
from sak.checkpoints.store import load_student

WORKER = Path(__file__).with_name("finetune_killed_worker.py")
STEPS = {"steps": 10, "device": "cpu", "overrides": ["training.checkpoint_every=3"]}


def losses(folder):
    return {line["step"]: line["loss"] for line in RunDirectory(folder).metrics() if "loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "saved"), [("in a step", 6), ("while saving", 3)])
def test_a_killed_run_is_resumed_bit_for_bit(what, saved, distilled, scenes, finetune_recipe, tmp_path):
    recipe, killed, straight = tmp_path / "recipe.yaml", tmp_path / "killed", tmp_path / "straight"
    recipe.write_text(yaml.safe_dump(finetune_recipe))
    command = [sys.executable, str(WORKER), str(distilled), str(scenes), str(killed), str(recipe), what]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (killed / "checkpoints/last").resolve().name == f"step-{saved:08d}"
    asked = finetune_config(init=str(distilled), dataset="demo-pascal", data=str(scenes), config=recipe, **STEPS)
    result = finetune(asked, killed, RunOptions(Start(resume=True)))
    finetune(asked, straight)
    assert (result.step, result.stopped) == (10, False)
    assert losses(killed) == losses(straight)
    mine, theirs = (load_student(folder / "checkpoints/last").state_dict() for folder in (killed, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert {path.name for path in (killed / "checkpoints").iterdir()} <= {"last", "best", "step-00000010"} | {
        (killed / "checkpoints/best").resolve().name
    }
