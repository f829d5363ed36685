"""Fine-tuning on small demo trees: from a distilled run, from a stem, baselines, probes; what it writes and refuses."""

import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline.data.datasets import open_dataset
from pipeline.data.task_batches import TaskBatches
from pipeline.dense.task_model import load_task_model
from pipeline.finetune.held_out import Centred
from pipeline.finetune.stage import FinetuneConfig, finetune, finetune_config
from pipeline.train.run import RunDirectory, RunOptions, Start
from sak.checkpoints.store import load_student
from sak.errors import SakError, UsageError
from sak.teachers import TeacherRecipe, build_teacher

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
        result = finetune(config, tmp_path / name, RunOptions(start or Start(), trackers, say))
        directory = RunDirectory(tmp_path / name)
        lines = [line for line in directory.metrics() if "learning_rate" in line]
        evaluated = [line for line in directory.metrics() if line.get("evaluation")]
        return SimpleNamespace(result=result, directory=directory, lines=lines, evaluated=evaluated,
                               losses=[line["loss"] for line in lines], about=directory.about())  # fmt: skip

    return go


def weights(run, checkpoint="last"):
    return load_task_model(run.directory.root, checkpoint=checkpoint)[0].model.state_dict()


@pytest.mark.slow
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


def test_a_bare_checkpoint_learns_beside_the_teachers_that_a_spec_describes(run, distilled, small_world, tmp_path):
    """As an imported checkpoint of the authors' does; the spec's teachers are those of the run's own record."""
    alone = tmp_path / "imported"
    alone.symlink_to((distilled / "checkpoints/last").resolve())
    short = {"training": {"steps": 2}}
    bare = run("bare", init=str(alone), spec=str(small_world.spec), recipe=short)
    recorded = run("recorded", init=str(distilled), recipe=short)
    assert bare.losses == recorded.losses
    assert bare.about["reads"]["live"] == recorded.about["reads"]["live"]


def test_a_student_from_a_stem_has_paths_for_the_teachers_of_a_spec(run, small_world):
    made = run(spec=str(small_world.spec), teachers=("clip", "sam"), recipe={"training": {"steps": 2}})
    known = load_task_model(made.directory.root)[0].model.config.teachers
    assert set(known) == {"clip", "dinov2", "sam"}
    assert {name.split("/")[0] for name in made.lines[0] if "/level" in name} == {"clip", "sam"}


def test_how_like_its_live_teachers_the_student_is_is_measured_and_drawn(run, distilled, scenes):
    made = run(init=str(distilled), recipe={"training": {"steps": 2}})
    dataset = open_dataset("demo-nyud", scenes, "val", ["semseg"])
    (told,) = [line for line in (made.directory.root / "train.log").read_text().splitlines() if "rep_sim" in line]
    assert f"rep_sim on {len(dataset)} validation images" in told
    images = torch.stack([Centred(dataset, (64, 64)).load(number).image for number in range(len(dataset))])
    (model,) = load_task_model(made.directory.root, checkpoint="last")
    clip = build_teacher(TeacherRecipe.from_json(made.about["teachers"]["clip"]), image_size=(64, 64))
    with torch.no_grad():
        pairs = zip(model.model.eval()(images, tasks=()).teachers["clip"], clip.from_imagenet(images), strict=True)
        wanted = torch.stack([torch.cosine_similarity(*(map_.flatten(1) for map_ in pair)) for pair in pairs]).mean()
    assert float(re.search(r"clip ([-0-9.]+)", told).group(1)) == pytest.approx(float(wanted), abs=1e-4)
    assert (made.directory.figures / "rep_sim.png").stat().st_size > 5000
    alone = run("alone", init=str(distilled), distil=False, recipe={"training": {"steps": 1}})
    assert not (alone.directory.figures / "rep_sim.png").exists()


def test_a_multi_task_baseline_is_a_stem_with_heads(run, distilled):
    made = run(baseline="multi-task", recipe={"training": {"steps": 2}})
    (model,) = load_task_model(made.directory.root)
    assert (model.kind, dict(model.model.config.teachers)) == ("multi-task", {})
    assert "distillation" not in made.lines[0]
    again = run("from a run", baseline="multi-task", init=str(distilled), recipe={"training": {"steps": 1}})
    assert "stem.vit.blocks.3.attn.qkv.weight" in weights(again)
    assert not [key for key in weights(again) if key.startswith(("paths", "routers"))]


def test_the_recipe_says_what_the_heads_read(run, distilled):
    made = run(init=str(distilled), recipe={"student": {"fusion": "sum"}, "training": {"steps": 1}})
    assert load_task_model(made.directory.root)[0].model.config.fusion == "sum"
    assert not [key for key in weights(made) if key.startswith("routers")]
    assert [key for key in weights(made) if key.startswith("paths")]


def test_without_teachers_the_tasks_alone_are_learnt(run, distilled):
    made = run(init=str(distilled), distil=False)
    assert "distillation" not in made.lines[0]
    assert made.about["reads"]["live"] == {}
    source, mine = load_student(distilled / "checkpoints/last").state_dict(), weights(made)
    assert all(torch.equal(mine[key], source[key]) for key in source if key.startswith("aligners"))


CLIP = "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k"
SMALL = {"embed_dim": 16, "depth": 4, "num_heads": 2}
PROBE = {"probe": {"weights": "random:5", "overrides": SMALL}}


def teacher_of(run):
    return load_task_model(run.directory.root)[0].model.teacher.state_dict()


def test_a_probe_trains_heads_on_a_teacher_that_stays_as_it_is_to_the_last_bit(run):
    said = []
    made = run(init=f"teacher:{CLIP}", said=said, recipe={**PROBE, "training": {"steps": 4}})
    assert "warning: the teacher vit_base_patch16_clip_384.laion2b_ft_in12k_in1k has RANDOM weights" in said
    (model,) = load_task_model(made.directory.root)
    assert (model.kind, model.tasks) == ("probe", TASKS["demo-nyud"])
    untouched = build_teacher(CLIP, weights="random:5", image_size=64, overrides=SMALL).state_dict()
    assert all(torch.equal(tensor, untouched[key]) for key, tensor in teacher_of(made).items())
    assert made.losses[-1] < made.losses[0]
    assert not list(made.directory.root.rglob("student.safetensors"))


@pytest.mark.parametrize("init", ["teacher:sam", "teachers:dinov2,clip"])
def test_a_probe_takes_its_teachers_from_a_spec_and_resumes_bit_for_bit(run, small_world, monkeypatch, init):
    asked = {"init": init, "spec": str(small_world.spec), "recipe": {"training": {"steps": 4}}}
    straight = run("straight", **asked)
    stop_after(2, monkeypatch)
    assert run("parts", **asked).result.stopped
    monkeypatch.undo()
    parts = run("parts", **asked, start=Start(resume=True))
    assert parts.losses == straight.losses
    mine, theirs = weights(parts), weights(straight)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def stop_after(step, monkeypatch):
    plain = TaskBatches.start_at

    def start_at(self, first):
        for number, batch in enumerate(plain(self, first), start=first + 1):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(TaskBatches, "start_at", start_at)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_seven_steps_a_signal_and_thirteen_more_are_twenty_bit_for_bit(run, distilled, monkeypatch, workers):
    asked = {"init": str(distilled), "recipe": {"training": {"steps": 20}, "student": {"trunk_rate": 0.5}}}
    straight = run("straight", **asked)
    stop_after(7, monkeypatch)
    settings = {**asked, "recipe": {**asked["recipe"], "data": {"workers": workers}}}
    first = run("parts", **settings)
    assert (first.result.step, first.result.stopped) == (7, True)
    monkeypatch.undo()
    second = run("parts", **settings, start=Start(resume=True))
    assert second.losses == straight.losses
    mine, theirs = weights(second), weights(straight)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_single_task_baselines_are_whole_runs_that_resume_together(run, monkeypatch):
    asked = {"baseline": "single-task", "dataset": "demo-pascal", "tasks": ("human_parts", "sal"),
             "recipe": {"training": {"steps": 3}}}  # fmt: skip
    stop_after(2, monkeypatch)
    first = run(**asked)
    assert first.result.stopped
    monkeypatch.undo()
    assert not (first.directory.root / "sal").exists()
    second = run(**asked, start=Start(resume=True))
    assert not second.result.stopped
    models = load_task_model(second.directory.root)
    assert [(model.kind, model.tasks) for model in models] == [("single-task", ("human_parts",)),
                                                               ("single-task", ("sal",))]  # fmt: skip
    assert second.about["parts"] == {"human_parts": "human_parts", "sal": "sal"}
    parts = {task: RunDirectory(second.directory.root / task).about()["reads"]["images"] for task in asked["tasks"]}
    assert parts["human_parts"] < parts["sal"] == 11  # only the images with a person
    assert [line["step"] for line in RunDirectory(second.directory.root / "human_parts").metrics()
            if "loss" in line] == [1, 2, 3]  # fmt: skip


def test_delta_m_over_a_baseline_names_the_best_checkpoint(run):
    tasks, short = ("semseg", "edge"), {"training": {"steps": 2}}
    baseline = run("baseline", baseline="single-task", tasks=tasks, recipe=short)
    made = run("mine", baseline="multi-task", tasks=tasks, recipe=short, baseline_run=str(baseline.directory.root))
    at_end, theirs = made.evaluated[-1], {}
    for task in tasks:
        theirs |= [x for x in RunDirectory(baseline.directory.root / task).metrics() if x.get("evaluation")][-1]
    gains = [at_end["metric/semseg"] / theirs["metric/semseg"] - 1, 1 - at_end["loss/edge"] / theirs["loss/edge"]]
    assert at_end["delta_m"] == pytest.approx(100 * sum(gains) / 2)
    state = json.loads((made.directory.checkpoints / "best/training.json").read_text())
    assert state["values"]["best"] == at_end["delta_m"]
    with pytest.raises(UsageError, match=r"has not measured metric/normals; train it on the same tasks"):
        run("other", baseline="multi-task", tasks=(*tasks, "normals"), baseline_run=str(baseline.directory.root))
    with pytest.raises(UsageError, match=r"was trained on demo-nyud, not on demo-pascal: delta_m is over a baseline"):
        run(
            "pascal",
            dataset="demo-pascal",
            tasks=tasks,
            baseline="multi-task",
            baseline_run=str(baseline.directory.root),
        )


def test_a_fraction_of_the_images_is_fixed_by_the_seed(run):
    def read(name, seed=0, **more):
        recipe = {"training": {"steps": 1, "batch_size": 2, "seed": seed}}
        return run(name, baseline="multi-task", tasks=("depth",), recipe=recipe, **more).about["reads"]

    quarter = read("a", fraction=0.25)
    assert quarter["images"] == 3
    assert read("b", fraction=0.25) == quarter
    assert read("c", fraction=0.25, seed=1)["images_sha256"] != quarter["images_sha256"]


def test_boundaries_are_matched_during_training_only_where_asked(run):
    made = run(baseline="multi-task", tasks=("edge",), recipe={"training": {"steps": 1},
                                                                "evaluation": {"boundary": True}})  # fmt: skip
    assert 0 <= made.evaluated[-1]["metric/edge"] <= 100
    assert made.about["edges_measured_by"] == "odsF"


def test_accumulated_parts_have_the_batchs_teachers_and_noise(run, distilled):
    whole, parts = (run(f"by {n}", init=str(distilled), recipe={"training": {"steps": 1, "accumulate": n}})
                    for n in (1, 2))  # fmt: skip
    for name in (name for name in whole.lines[0] if "/level" in name or name == "distillation"):
        assert parts.lines[0][name] == pytest.approx(whole.lines[0][name], rel=2e-2)


def test_flags_go_over_set_and_set_over_the_recipe(scenes, finetune_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(finetune_recipe))
    asked = finetune_config(init="random:3", dataset="demo-nyud", data=str(scenes), config=recipe, tasks=["depth"],
                            overrides=["training.batch_size=2", "tasks.weights.depth=7"], epochs=0.5, batch_size=5,
                            baseline="multi-task", device="cpu")  # fmt: skip
    finetune(asked, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["recipe"]
    training = written["training"]
    assert (training["batch_size"], training["epochs"], training["steps"]) == (5, 0.5, None)
    assert (training["schedule"]["kind"], training["clip_norm"]) == ("poly", 10.0)
    line = next(x for x in RunDirectory(tmp_path / "run").metrics() if "loss" in x)
    assert line["loss"] == pytest.approx(7 * line["task/depth"])


def test_a_described_folder_without_a_validation_split_trains_unmeasured(run, scenes, tmp_path):
    spec = {"images": "images", "splits": {"train": "gt_sets/train.txt"},
            "tasks": {"depth": {"folder": "depth", "suffix": ".npy"}}}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    made = run(dataset=str(tmp_path / "mine.yaml"), data=str(scenes / "NYUDv2"), baseline="multi-task")
    assert made.evaluated == []
    assert load_task_model(made.directory.root)[0].tasks == ("depth",)


class TestRefusals:
    """Each is one line that says what, where and what to do."""

    @pytest.fixture(autouse=True)
    def one_line(self, run):
        def refused(kind, told, **asked):
            with pytest.raises(kind, match=told) as error:
                run("refused", **asked)
            assert "\n" not in str(error.value)

        self.refused = refused

    def test_nothing_to_start_from(self, tmp_path):
        self.refused(UsageError, r"no run and no checkpoint there; give a distilled run", init=str(tmp_path))
        self.refused(UsageError, r"imagenet has no adapter paths: name the spec .* \(--spec\), or train a --baseline")
        self.refused(UsageError, r"no teacher is named 'dinov3'", init="teacher:dinov3")
        self.refused(UsageError, r"a probe is no baseline", init=f"teacher:{CLIP}", baseline="multi-task", recipe=PROBE)

    def test_a_data_set_that_does_not_fit_the_run(self, run):
        first = run("first", baseline="multi-task", tasks=("semseg",), recipe={"training": {"steps": 1}})
        self.refused(UsageError, r"has a head of semseg with 40 channels already, demo-pascal needs 21: start from the "
                     "distilled run", init=str(first.directory.root), dataset="demo-pascal", distil=False)  # fmt: skip

    def test_missing_labels_and_trees(self, scenes, tmp_path):
        self.refused(SakError, r"nowhere is not a folder", data=str(tmp_path / "nowhere"), baseline="multi-task")
        tree = tmp_path / "NYUDv2"
        tree.mkdir()
        for folder in ("images", "segmentation", "edge", "normals", "gt_sets"):
            (tree / folder).symlink_to(scenes / "NYUDv2" / folder)
        self.refused(SakError, r"demo-nyud train: 11 of 55 files are missing: .*depth/.*npy.* or leave tasks out with "
                     "--tasks", data=str(tmp_path), baseline="multi-task")  # fmt: skip

    def test_missing_and_other_teachers(self, distilled, small_world, tmp_path):
        self.refused(UsageError, r"the student knows no 'dino'; its teachers are clip, dinov2, sam|dinov2",
                     init=str(distilled), teachers=("dino",))  # fmt: skip
        checkpoint = str((distilled / "checkpoints/last").resolve())
        alone = tmp_path / "imported"
        alone.symlink_to(checkpoint)
        self.refused(UsageError, r"nothing says how to build the teacher \w+: name a cache spec .* \(--no-distill\)",
                     init=str(alone))  # fmt: skip
        document = small_world.document()
        document["teachers"]["clip"]["weights"] = str(tmp_path / "clip.pth")
        spec = tmp_path / "spec.yaml"
        spec.write_text(yaml.safe_dump(document))
        self.refused(SakError, r"clip\.pth: no such weights file", init=str(distilled), spec=str(spec))
        document["teachers"]["clip"]["weights"] = "random:99"
        spec.write_text(yaml.safe_dump(document))
        self.refused(SakError, r"teacher clip .*random:99.*: its weights is \w+, wanted \w+", init=str(distilled),
                     spec=str(spec))  # fmt: skip

    def test_batches_that_cannot_be_made(self):
        base = {"baseline": "multi-task", "tasks": ("depth",)}
        self.refused(UsageError, r"11 training images make no batch of 16; take a smaller --batch-size", **base,
                     recipe={"training": {"batch_size": 16}})  # fmt: skip
        self.refused(UsageError, r"fraction of the data must be in \(0, 1\], got 0", **base, fraction=0.0)

    def test_settings_that_mean_nothing(self, scenes, tmp_path):
        self.refused(UsageError, r"demo-nyud has no task 'sal'; known: depth, edge", baseline="multi-task",
                     recipe={"best": "sal"})  # fmt: skip
        self.refused(UsageError, r"demo-nyud has no task 'dept'; did you mean 'depth'\?", baseline="multi-task",
                     recipe={"tasks": {"weights": {"dept": 1.0}}})  # fmt: skip
        self.refused(UsageError, r"no run there; train one with .* --baseline single-task", baseline="multi-task",
                     baseline_run=str(tmp_path / "nothing"))  # fmt: skip
        with pytest.raises(UsageError, match=r"no baseline 'multitask'; did you mean 'multi-task'\?"):
            finetune_config(init="imagenet", dataset="demo-nyud", data=str(scenes), baseline="multitask", device="cpu")

    def test_another_recipe_or_other_images_on_resume(self, run, monkeypatch):
        asked = {"baseline": "multi-task", "tasks": ("depth",)}
        run("refused", **asked, recipe={"training": {"steps": 1}})
        self.refused(UsageError, r"training.steps: was 1, now 2.*--force", **asked, start=Start(resume=True),
                     recipe={"training": {"steps": 2}})  # fmt: skip
