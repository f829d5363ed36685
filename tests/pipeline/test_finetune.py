"""Fine-tuning on small demo trees: from a distilled run, from a stem, baselines, probes; what it writes and refuses."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.finetune import FinetuneConfig, Session, finetune
from pipeline.training.begin import Start
from pipeline.training.run import RunDirectory
from pipeline.training.task_model import load_task_model
from sak.checkpoints import load_student

TASKS = {"demo-nyud": ("semseg", "depth", "normals", "edge"),
         "demo-pascal": ("semseg", "human_parts", "sal", "normals", "edge")}  # fmt: skip


@pytest.fixture
def run(scenes, finetune_recipe, tmp_path):
    """`run(name, ...)` fine-tunes into that folder and tells how it ended; `recipe` changes the recipe's parts."""

    def go(name="run", *, recipe=None, start=None, said=None, trackers=(), **asked):
        parts = {key: {**finetune_recipe.get(key, {}), **value} if isinstance(value, dict) else value
                 for key, value in {**finetune_recipe, **(recipe or {})}.items()}  # fmt: skip
        given = {"init": "imagenet", "dataset": "demo-nyud", "data": str(scenes), "device": "cpu", **asked}
        config = FinetuneConfig(**given, recipe=parts)
        say = said.append if said is not None else None
        result = finetune(config, tmp_path / name, Session(start or Start(), trackers, say))
        directory = RunDirectory(tmp_path / name)
        lines = [line for line in directory.metrics() if "learning_rate" in line]
        evaluated = [line for line in directory.metrics() if line.get("evaluation")]
        return SimpleNamespace(result=result, directory=directory, lines=lines, evaluated=evaluated,
                               losses=[line["loss"] for line in lines], about=directory.about())  # fmt: skip

    return go


def weights(run, checkpoint="last"):
    return load_task_model(run.directory.root, checkpoint=checkpoint)[0].model.state_dict()


@pytest.mark.parametrize("dataset", TASKS)
def test_a_distilled_student_learns_every_task_beside_its_teachers(run, distilled, dataset):
    made = run(init=str(distilled), dataset=dataset, recipe={"training": {"steps": 30, "optimiser": {"rate": 3e-3}}})
    first, last = ({name: sum(line[name] for line in lines) / 4 for name in made.lines[0] if name.startswith("task/")}
                   for lines in (made.lines[:4], made.lines[-4:]))  # fmt: skip
    assert set(first) == {f"task/{task}" for task in TASKS[dataset]}
    assert all(last[name] < first[name] for name in first)
    assert {name for name in made.lines[0] if "/level" in name} == {
        f"{teacher}/level{level}" for teacher in ("dinov2", "clip", "sam") for level in (1, 2, 3, 4)
    }
    for line in made.lines:
        assert line["loss"] == pytest.approx(line["tasks"] + line["distillation"], rel=1e-6)
    (model,) = load_task_model(made.directory.root)
    assert (model.kind, model.dataset, model.tasks) == ("sak", dataset, TASKS[dataset])
    names = {path.relative_to(made.directory.root).as_posix() for path in made.directory.root.rglob("*")}
    assert {"config.yaml", "run.json", "train.log", "checkpoints/best", "figures/metrics.png",
            "figures/task_losses.png", "figures/losses.png"} <= names  # fmt: skip
    assert set(made.about["teachers"]) == set(made.about["reads"]["live"]) == {"dinov2", "clip", "sam"}
    assert "metric/edge" not in made.evaluated[-1]
    assert made.evaluated[-1]["loss/edge"] < made.evaluated[0]["loss/edge"]


def test_the_students_trunk_is_the_distilled_one_at_the_new_size(run, distilled):
    made = run(init=str(distilled), recipe={"training": {"steps": 1, "optimiser": {"rate": 1e-12}}})
    source, mine = load_student(distilled / "checkpoints/last").state_dict(), weights(made)
    assert mine["stem.vit.pos_embed"].shape[1] == 17
    same = [key for key in source if key != "stem.vit.pos_embed"]
    assert all(torch.allclose(mine[key], source[key], atol=1e-9) for key in same)
    assert made.about["init"].endswith("checkpoints/last")


def test_a_multi_task_baseline_is_a_stem_with_heads(run, distilled):
    made = run(baseline="multi-task", recipe={"training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert (model.kind, dict(model.model.config.teachers)) == ("multi-task", {})
    assert "distillation" not in made.lines[0]
    again = run("from a run", baseline="multi-task", init=str(distilled), recipe={"training": {"steps": 1}})
    assert "stem.vit.blocks.3.attn.qkv.weight" in weights(again)
    assert not [key for key in weights(again) if key.startswith(("paths", "routers"))]


def test_without_teachers_the_tasks_alone_are_learnt(run, distilled):
    made = run(init=str(distilled), distil=False)
    assert "distillation" not in made.lines[0]
    assert made.about["reads"]["live"] == {}
    source, mine = load_student(distilled / "checkpoints/last").state_dict(), weights(made)
    assert all(torch.equal(mine[key], source[key]) for key in source if key.startswith("aligners"))
