"""What the paper compares with, through finetune on small demo trees: each by one configuration."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.finetune import FinetuneConfig, Session, finetune
from pipeline.training.run import RunDirectory
from pipeline.training.task_model import load_task_model


@pytest.fixture
def run(scenes, finetune_recipe, tmp_path):
    """`run(name, ...)` fine-tunes into that folder; `recipe` changes the recipe's parts."""

    def go(name="run", *, recipe=None, **asked):
        parts = {key: {**finetune_recipe.get(key, {}), **(recipe or {}).get(key, {})}
                 for key in {**finetune_recipe, **(recipe or {})}}  # fmt: skip
        given = {"init": "imagenet", "dataset": "demo-nyud", "data": str(scenes), "device": "cpu", **asked}
        finetune(FinetuneConfig(**given, recipe=parts), tmp_path / name, Session())
        directory = RunDirectory(tmp_path / name)
        lines = [line for line in directory.metrics() if "learning_rate" in line]
        return SimpleNamespace(directory=directory, lines=lines, losses=[line["loss"] for line in lines])

    return go


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"weighting": "uncertainty", "gradients": "pcgrad"}, True),
        ({"weighting": "dwa", "gradients": "cagrad"}, True),
        ({"weighting": "rlw"}, True),
        ({"gradients": "pcgrad"}, False),
    ],
)
def test_weightings_and_gradient_methods_train_a_distilled_student(run, distilled, tasks, told):
    made = run(init=str(distilled), recipe={"tasks": tasks, "training": {"steps": 3}})
    assert len(made.losses) == 3
    assert all(torch.isfinite(torch.tensor(made.losses)))
    assert ({"weight/semseg", "weight/edge"} <= set(made.lines[-1])) == told
    if tasks.get("weighting") == "uncertainty":
        assert made.lines[-1]["weight/edge"] != 1.0
    for line in made.lines:
        assert line["loss"] == pytest.approx(line["tasks"] + line["distillation"], rel=1e-5)


@pytest.mark.parametrize("decoder", ["mlore", "invpt"])
def test_a_decoder_is_named_by_the_recipe(run, distilled, decoder):
    made = run(init=str(distilled), recipe={"student": {"decoder": decoder}, "training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert model.model.config.decoder == decoder
