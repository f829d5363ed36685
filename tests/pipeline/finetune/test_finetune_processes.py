"""Fine-tuning on two processes (gloo): the losses and weights of one, and an exact resume after a signal to one."""

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.finetune.stage import finetune, finetune_config
from pipeline.train.run import RunDirectory
from sak.checkpoints.store import load_student

WORKER = Path(__file__).with_name("finetune_worker.py")


def lines(folder, *, evaluated=False):
    return [line for line in RunDirectory(folder).metrics() if bool(line.get("evaluation")) is evaluated]


def weights(folder):
    return load_student(folder / "checkpoints/last").state_dict()


@pytest.fixture(scope="module")
def two(distilled, scenes, finetune_recipe, run_two, tmp_path_factory):
    """The folder in which two processes have run, and the recipe's file."""
    out = tmp_path_factory.mktemp("two")
    recipe = out / "recipe.yaml"
    document = {**finetune_recipe, "training": {**finetune_recipe["training"], "optimiser": {"rate": 5e-4}}}
    recipe.write_text(yaml.safe_dump(document))
    run_two(WORKER, distilled, scenes, out, recipe, 1)
    return out, recipe


@pytest.mark.slow
def test_all_processes_stop_at_the_step_at_which_one_was_told_to(two):
    assert [(two[0] / f"steps-{rank}.txt").read_text() for rank in (0, 1)] == ["[10, 4, 10]"] * 2


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(two):
    mine, theirs = weights(two[0] / "parts"), weights(two[0] / "straight")
    assert [x["loss"] for x in lines(two[0] / "parts")] == [x["loss"] for x in lines(two[0] / "straight")]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one_with_the_same_global_batch(two, distilled, scenes):
    """BatchNorm, the losses' counts of pixels and the routers' noise are the whole batch's.

    A bias before a BatchNorm has no gradient but rounding, which AdamW makes steps of; it moves the running mean alone.
    """
    out, recipe = two
    flags = {"dataset": "demo-pascal", "data": str(scenes), "config": recipe, "steps": 10, "device": "cpu"}
    finetune(finetune_config(init=str(distilled), **flags), out / "one")
    for mine, theirs in zip(lines(out / "straight"), lines(out / "one"), strict=True):
        for name in theirs.keys() - {"images_per_second", "data_wait"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), (name, theirs["step"])
    ours, theirs = weights(out / "straight"), weights(out / "one")
    for name in [name for name in theirs if not name.endswith(("fuse.0.bias", "fuse.1.running_mean"))]:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=name)
    assert lines(out / "straight", evaluated=True)[0] == lines(out / "one", evaluated=True)[0]
