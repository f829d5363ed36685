"""What the paper compares with, through finetune on small demo trees: each by one configuration."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.compare import compare_runs
from pipeline.data.datasets import task_table
from pipeline.dense.evaluation import Evaluation, TaskEvaluation
from pipeline.dense.task_model import load_task_model
from pipeline.distill.stage import DistillConfig, distill
from pipeline.evaluate.results import Evaluated, StoredEvaluation, write_stored
from pipeline.finetune.stage import FinetuneConfig, finetune
from pipeline.train.distillation import load_standardisers
from pipeline.train.run import RunDirectory
from sak.checkpoints.store import load_student
from sak.errors import UsageError


@pytest.fixture
def run(scenes, finetune_recipe, tmp_path):
    """`run(name, ...)` fine-tunes into that folder; `recipe` changes the recipe's parts."""

    def go(name="run", *, recipe=None, **asked):
        parts = {key: {**finetune_recipe.get(key, {}), **(recipe or {}).get(key, {})}
                 for key in {**finetune_recipe, **(recipe or {})}}  # fmt: skip
        given = {"init": "imagenet", "dataset": "demo-nyud", "data": str(scenes), "device": "cpu", **asked}
        finetune(FinetuneConfig(**given, recipe=parts), tmp_path / name)
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


@pytest.mark.parametrize("decoder", ["mlore", "mlore-wide", "invpt"])
def test_a_decoder_is_named_by_the_recipe(run, distilled, decoder):
    made = run(init=str(distilled), recipe={"student": {"decoder": decoder}, "training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert model.model.config.decoder == decoder
    for line in made.lines:  # their own terms are in the loss
        more = 3e-4 * line["imbalance"] if "imbalance" in line else 0.0
        assert line["loss"] == pytest.approx(line["tasks"] + line["distillation"] + more, rel=1e-5)
        assert ("imbalance" in line) == decoder.startswith("mlore")
        assert ("preliminary/semseg" in line) == (decoder == "invpt")


def test_the_paths_sum_lora_and_freezing_are_named_by_the_recipe(run, distilled):
    made = run(
        init=str(distilled),
        recipe={"student": {"fusion": "sum", "lora": {"rank": 2}}, "training": {"steps": 2}},
    )
    (model,) = load_task_model(made.directory.root)
    student = model.model
    assert (student.config.fusion, student.config.lora.rank, len(student.routers)) == ("sum", 2, 0)
    low_rank = sum(p.numel() for name, p in student.named_parameters() if "lora_" in name)
    assert low_rank == 4 * 2 * ((16 + 3 * 16) + (16 + 16))  # blocks x rank x (qkv's in + out, proj's in + out)
    start = load_student(distilled / "checkpoints" / "last").stem.state_dict()
    own = student.stem.state_dict()
    assert all(torch.equal(own[name], value) for name, value in start.items() if name != "vit.pos_embed")  # resampled


def changed(start, end):
    """The parts of a student that are not the same in two state dicts; position embeddings are resampled."""
    return {name.split(".")[0] for name, value in start.items()
            if name != "stem.vit.pos_embed" and not torch.equal(value, end[name])}  # fmt: skip


@pytest.mark.parametrize("gradients", ["sum", "pcgrad"])
def test_what_is_frozen_stays_to_the_last_bit_through_fine_tuning(run, distilled, tmp_path, gradients):
    recipe = {"student": {"freeze": "stem"}, "tasks": {"gradients": gradients}, "training": {"steps": 3}}
    stem = run("stem", init=str(distilled), recipe=recipe)
    first = load_student(distilled / "checkpoints" / "last").state_dict()
    tuned = load_student(stem.directory.root / "checkpoints" / "last").state_dict()
    assert changed(first, tuned) == {"paths", "norms", "aligners"}
    recipe["student"] = {"freeze": "all-but-routers"}
    with pytest.raises(UsageError, match=r"would leave new heads of semseg, .* at random for ever"):
        run("heads", init=str(distilled), recipe=recipe)
    with pytest.raises(UsageError, match="would leave new heads"):
        run(
            "others",
            init=str(stem.directory.root),
            recipe={**recipe, "student": {**recipe["student"], "decoder": "mlore"}},
        )
    with pytest.raises(UsageError, match="leaves nothing to train: this network has no routers"):
        run("plain", baseline="multi-task", recipe=recipe)
    routers = run("routers", init=str(stem.directory.root), recipe=recipe)
    again = load_student(routers.directory.root / "checkpoints" / "last").state_dict()
    start = load_student(stem.directory.root / "checkpoints" / "best").state_dict()
    assert changed(start, again) == {"routers"}


def test_a_many_to_one_student_goes_through_both_stages(run, small_world, tiny_recipe, tmp_path):
    recipe = {**tiny_recipe, "student": {**tiny_recipe["student"], "adapters": False}}
    recipe["training"] = {**tiny_recipe["training"], "steps": 2}
    distill(DistillConfig(cache=str(small_world.cache), recipe=recipe, device="cpu"), tmp_path / "plain")
    made = run(init=str(tmp_path / "plain"), recipe={"training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert (len(model.model.paths), model.model.config.fusion, model.model.config.aligned) == (0, "none", True)
    assert any(name.startswith("dinov2/") for name in made.lines[0])


def test_a_swin_student_goes_through_both_stages(run, small_world, tiny_recipe, tmp_path):
    size = {"embed": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 2}
    recipe = {**tiny_recipe, "student": {"stem": size, "weights": "random:0"}}
    recipe["training"] = {**tiny_recipe["training"], "steps": 2}
    asked = DistillConfig(cache=str(small_world.cache), recipe=recipe, device="cpu", teachers=("dinov2", "clip"))
    distill(asked, tmp_path / "swin")
    made = run(init=str(tmp_path / "swin"), recipe={"training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert model.model.config.level_widths == (8, 16, 32, 64)
    with pytest.raises(UsageError, match="was projected onto a 2x2 grid but the student's is 8x8"):
        distill(asked.model_copy(update={"teachers": ("sam",)}), tmp_path / "projected")


@pytest.mark.parametrize("kind", ["phi-s", "mean-var"])
def test_targets_are_standardised_and_fine_tuning_goes_on_towards_the_same(
    kind, run, small_world, tiny_recipe, tmp_path
):
    recipe = {**tiny_recipe, "loss": {"standardise": kind}}
    recipe["training"] = {**tiny_recipe["training"], "steps": 3}
    asked = DistillConfig(cache=str(small_world.cache), recipe=recipe, device="cpu", teachers=("dinov2", "clip"),
                          val_cache=str(small_world.val_cache))  # fmt: skip
    distill(asked, tmp_path / "scaled")
    kept = load_standardisers(tmp_path / "scaled", torch.device("cpu"))
    assert set(kept) == {"dinov2", "clip"}
    cache = FeatureCache.open(small_world.cache, ["dinov2", "clip"])
    targets = cache.read(cache.samples_in(0)).decode()
    for name, scales in kept.items():
        calibration = cache.readers[name].columns[0].calibration()
        for level, scale, target in zip((1, 2, 3, 4), scales, targets[name], strict=True):
            channels = scale(target).transpose(0, 1).flatten(1)
            if kind == "mean-var":
                assert torch.equal(scale.mean, calibration.levels[level].mean)
                torch.testing.assert_close(scale.scale, calibration.levels[level].std)
            else:
                assert scale.scale.ndim == 0
                torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), rtol=0, atol=1e-4)
                spread = channels.var(1, correction=0)
                torch.testing.assert_close(spread, torch.ones(len(channels)), rtol=1e-3, atol=1e-3)
    made = run(init=str(tmp_path / "scaled"), recipe={"training": {"steps": 2}})
    again = load_standardisers(made.directory.root, torch.device("cpu"))
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(kept["clip"], again["clip"], strict=True))


def test_a_projected_target_takes_phi_s_and_refuses_channels(small_world, tiny_recipe, tmp_path):
    recipe = {**tiny_recipe, "loss": {"standardise": "mean-var"}}
    asked = DistillConfig(cache=str(small_world.cache), recipe=recipe, device="cpu", teachers=("sam",))
    with pytest.raises(UsageError, match="take phi-s, or extract it on its native grid"):
        distill(asked, tmp_path / "run")
    recipe["loss"] = {"standardise": "phi-s"}
    distill(asked.model_copy(update={"recipe": DistillConfig(cache="", recipe=recipe).recipe}), tmp_path / "phi")


def test_frozen_teachers_are_amalgamated_by_routers_and_stay_as_they_were(run, small_world):
    made = run(init="teachers:dinov2,clip", spec=str(small_world.spec), recipe={"training": {"steps": 3}})
    (model,) = load_task_model(made.directory.root)
    amalgam = model.model
    assert (model.kind, list(amalgam.teachers)) == ("probe", ["dinov2", "clip"])
    assert amalgam.heads["semseg"].linears[0].in_features == 24  # the wider one's; dinov2 has an aligner
    assert list(amalgam.aligners) == ["dinov2"]
    fresh = amalgam.config.build_teachers()
    for teacher, again in zip(amalgam.teachers.values(), fresh, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), again.parameters(), strict=True))
    gates = amalgam.eval()(torch.randn(2, 3, *model.image_size)).gates
    assert (list(gates), list(gates[4])) == ([1, 2, 3, 4], list(model.tasks))
    torch.testing.assert_close(gates[4]["semseg"].sum(1), torch.ones(2))
    with pytest.raises(UsageError, match="two teachers or more"):
        run("one", init="teachers:clip", spec=str(small_world.spec))


def evaluated(place, images="abc", **metrics):
    """A run with an evaluation as `sak-cli evaluate` stores it."""
    place.mkdir()
    of = Evaluated("demo-nyud", "data", "val", images, tuple(metrics), "best", place.name, (64, 64))
    rows = task_table("demo-nyud")
    tasks = {
        name: TaskEvaluation(rows[name].metric, rows[name].unit, rows[name].lower_is_better, value, 1, 0, 10, {})
        for name, value in metrics.items()
    }
    stored = StoredEvaluation(of, Evaluation("demo-nyud", 1, (64, 64), tasks))
    write_stored(place / "evaluation-val.json", stored.as_dict())
    return place


def test_probes_are_set_beside_the_vit_with_mu_sigma_and_the_oracle(tmp_path):
    vit = evaluated(tmp_path / "vit", semseg=50.0, depth=0.5)
    dino = evaluated(tmp_path / "dino", semseg=60.0, depth=0.45)
    sam = evaluated(tmp_path / "sam", semseg=40.0, depth=0.40)
    found = compare_runs(vit, [dino, sam])
    assert found.improvements["dino"].per_task == pytest.approx({"semseg": 20.0, "depth": 10.0})
    assert (found.improvements["dino"].mean, found.improvements["dino"].deviation) == pytest.approx((15.0, 5.0))
    assert found.improvements["dino"].ratio == pytest.approx(3.0)
    assert found.oracle.best == {"semseg": "dino", "depth": "sam"}
    assert found.improvements["oracle"].mean == pytest.approx(20.0)
    assert "60 (dino)" in found.to_text()
    with pytest.raises(UsageError, match="has no evaluation: run sak-cli evaluate"):
        compare_runs(vit, [tmp_path])
    other = evaluated(tmp_path / "other", images="xyz", semseg=50.0, depth=0.5)
    with pytest.raises(UsageError, match="was evaluated on other images"):
        compare_runs(vit, [other])
    (dino / "evaluation-val.json").write_text("{}")
    with pytest.raises(UsageError, match="is no evaluation"):
        compare_runs(vit, [dino])
