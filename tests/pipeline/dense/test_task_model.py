"""Trained networks as evaluation and prediction are given them: from runs, parts of runs, and bare checkpoints."""

import json

import pytest
import torch

from pipeline.dense.task_model import (
    TaskModel,
    checkpoint_folder,
    describe,
    load_task_model,
    restore_task_model,
    save_task_model,
)
from pipeline.train.checkpoint import new_checkpoint, point, step_folder
from sak.errors import SakError, UsageError
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize
from sak.tasks import NYUD, PASCAL_CONTEXT
from sak.teachers import TeacherRecipe
from sak.variants.frozen import Probe, ProbeConfig


def student(tasks=NYUD.channels, seed=0, **more):
    stem = StemSize(16, 4, 2)
    options = more or {"teachers": {"clip": 16}}
    return new_student(StudentConfig((32, 48), stem, "random:0", tasks=tasks, **options), seed=seed)


def write_run(place, model, *, best=None, **about):
    for name, each in (("last", model), ("best", best)):
        if each is not None:
            number = 2 if name == "last" else 1
            with new_checkpoint(place / "checkpoints", number) as folder:
                save_task_model(each, folder)
            point(place / "checkpoints", name, step_folder(place / "checkpoints", number))
    written = {"stage": "finetune", "dataset": "nyud", "kind": "sak", "tasks": list(NYUD.names), **about}
    (place / "run.json").write_text(json.dumps(written))
    return place


def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def same(mine, theirs):
    return all(torch.equal(a, theirs.state_dict()[key]) for key, a in mine.state_dict().items())


def test_a_run_gives_its_best_checkpoint_or_the_last(tmp_path):
    last, best = student(seed=1), student(seed=2)
    (loaded,) = load_task_model(write_run(tmp_path, last, best=best))
    assert (loaded.tasks, loaded.dataset, loaded.kind, loaded.image_size) == (NYUD.names, "nyud", "sak", (32, 48))
    assert same(loaded.model, best)
    assert same(load_task_model(tmp_path, checkpoint="last")[0].model, last)
    (tmp_path / "checkpoints/best").unlink()
    assert checkpoint_folder(tmp_path).name == "last"
    assert same(load_task_model(tmp_path)[0].model, last)


def test_predictions_are_in_eval_mode_without_gradients_and_of_the_tasks_in_order():
    made = describe(student())
    made.model.train()
    first, second = made.predict(images()), made.predict(images())
    assert list(first) == list(NYUD.names)
    assert all(torch.equal(first[task], second[task]) for task in first)
    assert all(tuple(first[t].shape) == (2, NYUD[t].channels, 32, 48) and not first[t].requires_grad for t in first)
    some = TaskModel(made.model, ("depth",), (32, 48), "nyud", "sak")
    assert list(some.predict(images())) == ["depth"]


def test_a_single_task_baseline_has_one_network_a_task(tmp_path):
    for task in NYUD.names:
        plain = student({task: NYUD[task].channels}, teachers={}, fusion="none")
        write_run(tmp_path / task, plain, kind="single-task", tasks=[task])
    about = {"stage": "finetune", "kind": "single-task", "dataset": "nyud", "parts": {t: t for t in NYUD.names}}
    (tmp_path / "run.json").write_text(json.dumps(about))
    loaded = load_task_model(tmp_path)
    assert [each.tasks for each in loaded] == [(task,) for task in NYUD.names]
    assert {each.kind for each in loaded} == {"single-task"}
    (tmp_path / "edge/run.json").unlink()
    with pytest.raises(UsageError, match=r"edge is not trained yet; go on with .* --resume"):
        load_task_model(tmp_path)


def test_a_bare_checkpoint_tells_its_data_set_by_its_channels(tmp_path):
    save_task_model(student(), tmp_path / "nyud")
    save_task_model(student(PASCAL_CONTEXT.channels), tmp_path / "pascal")
    save_task_model(student({"normals": 3}), tmp_path / "both")
    save_task_model(student({"semseg": 7}), tmp_path / "none")
    assert load_task_model(tmp_path / "nyud")[0].dataset == "nyud"
    assert load_task_model(tmp_path / "pascal")[0].dataset == "pascal-context"
    assert load_task_model(tmp_path / "nyud", dataset="demo-nyud")[0].dataset == "demo-nyud"
    with pytest.raises(UsageError, match=r"fit pascal-context and nyud; name the data set with --dataset"):
        load_task_model(tmp_path / "both")
    with pytest.raises(UsageError, match=r"are those of no known data set; name the data set"):
        load_task_model(tmp_path / "none")


def test_another_image_size_resamples_the_position_embedding(tmp_path):
    write_run(tmp_path, student())
    (loaded,) = load_task_model(tmp_path, image_size=(64, 64))
    assert loaded.image_size == (64, 64)
    assert loaded.predict(torch.zeros(1, 3, 64, 64))["depth"].shape == (1, 1, 64, 64)


def test_a_probe_is_saved_without_its_teacher_and_comes_back(tmp_path):
    overrides = {"embed_dim": 16, "depth": 4, "num_heads": 2}
    teacher = TeacherRecipe(
        "clip", "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "random:1", overrides=overrides
    )
    config = ProbeConfig(teacher, (32, 48), NYUD.channels)
    probe = Probe(config, config.build_teacher())
    write_run(tmp_path, probe, kind="probe")
    (loaded,) = load_task_model(tmp_path)
    assert (loaded.kind, loaded.tasks) == ("probe", NYUD.names)
    assert same(loaded.model, probe)
    other = Probe(config, config.build_teacher())
    restore_task_model(other, checkpoint_folder(tmp_path, "last"))
    assert same(other, probe)


class TestRefusals:
    """Each is one line."""

    def test_no_fine_tuned_run(self, tmp_path):
        with pytest.raises(UsageError, match="no such folder"):
            load_task_model(tmp_path / "nowhere")
        with pytest.raises(UsageError, match=r"holds no checkpoint \(student.safetensors\)"):
            load_task_model(tmp_path)
        save_task_model(student({}), tmp_path / "distilled")
        with pytest.raises(UsageError, match="has no task heads: it is a distilled student"):
            load_task_model(tmp_path / "distilled", dataset="nyud")
        with pytest.raises(UsageError, match="has no task heads: it is a distilled student"):
            load_task_model(tmp_path / "distilled")
        write_run(tmp_path, student({}), stage="distill")
        with pytest.raises(UsageError, match="is a run of distill, no fine-tuned one"):
            load_task_model(tmp_path)
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(SakError, match=r"run\.json is damaged"):
            load_task_model(tmp_path)

    def test_no_checkpoint_yet(self, tmp_path):
        (tmp_path / "run.json").write_text(json.dumps({"stage": "finetune", "dataset": "nyud", "kind": "sak"}))
        with pytest.raises(UsageError, match=r"has no checkpoint yet; let it train on with --resume"):
            load_task_model(tmp_path)

    def test_a_data_set_that_does_not_fit(self, tmp_path):
        write_run(tmp_path, student())
        with pytest.raises(UsageError, match=r"its head of semseg has 40 channels, pascal-context has 21"):
            load_task_model(tmp_path, dataset="pascal-context")
        write_run(tmp_path, student({"depth": 1}))
        with pytest.raises(UsageError, match=r"predicts depth, which demo-pascal does not have"):
            load_task_model(tmp_path, dataset="demo-pascal")
