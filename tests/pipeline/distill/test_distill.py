"""Distillation on a small real cache: from the cache, live, and half of each; what it reads, writes and refuses."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline.cache.manifest import CacheError
from pipeline.cache.selection import SpecMismatchError
from pipeline.distill.stage import DistillConfig, distill, distill_config
from pipeline.train.run import RunDirectory, RunOptions, Start
from sak.checkpoints.store import load_student
from sak.errors import SakError, UsageError


@pytest.fixture
def run(small_world, tiny_recipe, tmp_path):
    """`run(name, ...)` distils into that folder and tells how it ended; `training` changes the recipe."""

    def go(
        name="run", *, training=None, student=None, data=None, loss=None, start=None, say=None, trackers=(), **asked
    ):
        recipe = {
            "student": {**tiny_recipe["student"], **(student or {})},
            "data": {**tiny_recipe["data"], **(data or {})},
            "training": {**tiny_recipe["training"], **(training or {})},
            "loss": {**tiny_recipe.get("loss", {}), **(loss or {})},
        }
        where = asked.pop("data_location", None)
        config = DistillConfig(**{"cache": str(small_world.cache), "device": "cpu", "data": where, **asked},
                               recipe=recipe)  # fmt: skip
        result = distill(config, tmp_path / name, RunOptions(start or Start(), trackers, say))
        directory = RunDirectory(tmp_path / name)
        losses = [line for line in directory.metrics() if "loss" in line]
        return SimpleNamespace(result=result, directory=directory, lines=losses, losses=[x["loss"] for x in losses])

    return go


def test_loss_falls_and_rep_sim_rises_and_the_directory_holds_everything(run, small_world):
    made = run(training={"steps": 40}, val_cache=str(small_world.val_cache))
    assert made.losses[-1] < 0.9 * made.losses[0]
    measured = [line for line in made.directory.metrics() if line.get("evaluation")]
    for teacher in small_world.widths:
        assert measured[-1][f"rep_sim/{teacher}"] > measured[0][f"rep_sim/{teacher}"] + 0.1
    names = {path.relative_to(made.directory.root).as_posix() for path in made.directory.root.rglob("*")}
    expected = {"config.yaml", "run.json", "metrics.jsonl", "train.log", "checkpoints/last", "checkpoints/best",
                "figures/losses.png", "figures/rep_sim.png", "figures/speed.png"}  # fmt: skip
    assert expected <= names
    told = json.loads((made.directory.root / "run.json").read_text())
    assert len(told["reads"]["columns"]) == 3
    assert sorted(told["reads"]["random"]) == ["clip", "dinov2", "sam"]
    assert told["sessions"][0]["step"] == 40
    assert load_student(made.result.checkpoint).config.teacher_widths == {"clip": 24, "dinov2": 16, "sam": 16}


@pytest.mark.slow
def test_neither_teachers_nor_their_libraries_are_imported(small_world, tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**tiny_recipe, "training": {**tiny_recipe["training"], "steps": 2}}))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.distill.stage import distill, distill_config\n"
        f"asked = distill_config(cache={str(small_world.cache)!r}, config={str(recipe)!r}, device='cpu',"
        f" val_cache={str(small_world.val_cache)!r})\n"
        f"distill(asked, Path({str(tmp_path / 'run')!r}))\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('open_clip', 'segment_anything')"
        " or m.startswith('sak.teachers') and m not in ('sak.teachers', 'sak.teachers.recipe')]\n"
        "assert not bad, bad\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_bytes_read_are_those_of_the_wanted_teachers_and_levels_alone(run, small_world):
    """float16: 2 levels x tokens x channels x 2 bytes an image; nothing of sam, nothing of levels 1 and 2."""
    made = run(teachers=("dinov2", "clip"), levels=(3, 4), training={"steps": 5})
    told = json.loads((made.directory.root / "run.json").read_text())
    per_image = 2 * 2 * 2 * 2 * (small_world.widths["dinov2"] + small_world.widths["clip"])
    batches, remainder = divmod(told["sessions"][0]["bytes_read"], 4 * per_image)
    assert remainder == 0
    assert 5 <= batches <= 5 + 3  # read ahead
    assert {name for name in made.lines[0] if "/" in name} == {
        f"{teacher}/level{n}" for teacher in ("dinov2", "clip") for n in (3, 4)
    }
    assert load_student(made.result.checkpoint).config.tapped == (3, 4)


def deviation(mine, theirs, name="loss"):
    """The largest relative difference over the steps."""
    return max(abs(a[name] / b[name] - 1) for a, b in zip(mine.lines, theirs.lines, strict=True))


@pytest.mark.slow
def test_a_live_run_has_the_losses_of_the_cached_one_within_float16_over_fifty_steps(run):
    asked = {"training": {"steps": 50}, "teachers": ("clip", "dinov2")}
    cached, live = run("cached", **asked), run("live", **asked, online=True)
    found = deviation(cached, live)
    sys.stdout.write(f"native float16, cos+l1, 50 steps: largest relative deviation {found:.2e}\n")
    assert 0 < found < 1e-3


@pytest.mark.slow
def test_a_projected_cache_has_the_cosine_losses_of_a_live_run_and_a_lower_smooth_l1(run, monkeypatch):
    from pipeline.train import distillation

    asked = {"training": {"steps": 50}, "teachers": ("sam",)}
    plain = distillation.DistillationLoss
    monkeypatch.setattr(distillation, "DistillationLoss", lambda **given: plain(**{**given, "kind": "cos"}))
    cached, live = run("cached", **asked), run("live", **asked, online=True)
    monkeypatch.undo()
    found = deviation(cached, live)
    sys.stdout.write(f"projected float16, cosine, 50 steps: largest relative deviation {found:.2e}\n")
    assert 0 < found < 1e-3
    cached, live = run("cached both", **asked), run("live both", **asked, online=True)
    first = live.losses[0] - cached.losses[0]
    sys.stdout.write(
        f"projected float16, cos+l1: loss {first:.4f} lower at the first step, all of it smooth-L1 (weight 0.1); "
        f"relative deviation at most {deviation(cached, live):.2e}\n"
    )
    assert first > 0


def test_the_hybrid_takes_the_dear_teacher_from_the_cache_and_runs_the_others(run):
    training = {"steps": 8}
    cached = run("cached", training=training)
    hybrid = run("hybrid", training=training, teachers_online=("dinov2", "clip"))
    assert hybrid.losses == pytest.approx(cached.losses, rel=1e-3)
    told = json.loads((hybrid.directory.root / "run.json").read_text())
    assert set(told["reads"]["live"]) == {"dinov2", "clip"}
    assert [name.split("/")[1].split("-")[0] for name in told["reads"]["columns"]] == ["sam"]


def test_a_live_teacher_with_other_weights_than_the_columns_is_refused(run, small_world, monkeypatch):
    from sak.teachers import Teacher

    monkeypatch.setattr(Teacher, "weights_sha256", property(lambda self: "f" * 64))
    with pytest.raises(SakError, match=r"columns/clip-.*made from weights .*, here it is ffff.*bring that one back"):
        run(online=True)


def test_a_spec_lets_a_teacher_run_live_that_has_no_column(run, small_world, tmp_path):
    document = small_world.document()
    document["teachers"]["extra"] = {**document["teachers"]["clip"], "weights": "random:77"}
    spec = tmp_path / "more.yaml"
    spec.write_text(yaml.safe_dump(document))
    made = run(spec=str(spec), teachers=("sam", "extra"), teachers_online=("extra",))
    assert {name.split("/")[0] for name in made.lines[0] if "/" in name} == {"sam", "extra"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no workers"),
        pytest.param({"data": {"workers": 2}}, id="two workers", marks=pytest.mark.slow),
    ],
)
def test_seven_steps_a_kill_and_thirteen_more_are_twenty_bit_for_bit(run, settings, monkeypatch):
    straight = run("straight", training={"steps": 20})
    _stop_after(7, monkeypatch)
    first = run("parts", training={"steps": 20}, **settings)
    assert (first.result.step, first.result.stopped) == (7, True)
    monkeypatch.undo()
    second = run("parts", training={"steps": 20}, start=Start(resume=True), **settings)
    assert second.losses == straight.losses
    mine, theirs = (load_student(each.result.checkpoint).state_dict() for each in (second, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def _stop_after(step, monkeypatch):
    import os
    import signal

    from pipeline.data.distillation import CachedBatches

    plain = CachedBatches.start_at

    def start_at(self, first):
        for number, batch in enumerate(plain(self, first), start=first + 1):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(CachedBatches, "start_at", start_at)


def test_a_resume_with_another_recipe_lists_what_changed(run, monkeypatch):
    run(training={"steps": 2})
    with pytest.raises(UsageError, match=r"recipe.training.batch_size: was 4, now 8.*--force"):
        run(training={"steps": 2, "batch_size": 8}, start=Start(resume=True))
    longer = run(training={"steps": 4}, start=Start(resume=True, force=True))
    assert longer.result.step == 4
    with pytest.raises(UsageError, match="give one of them"):
        Start(resume=True, overwrite=True)


def test_another_student_in_the_checkpoint_is_refused(run):
    run(training={"steps": 2})
    with pytest.raises(UsageError, match="holds another student than the recipe asks for"):
        run(training={"steps": 4}, student={"down_ratio": 2}, start=Start(resume=True, force=True))


def test_images_are_read_from_where_data_says(run, small_world, tmp_path):
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(small_world.data)
    here, there = run("here"), run("there", data_location=str(elsewhere))
    assert here.losses == there.losses


def test_jitter_changes_the_students_input_alone_and_not_with_live_teachers(run):
    plain, jittered = run("plain"), run("jittered", data={"brightness": 0.5})
    assert plain.losses != jittered.losses
    with pytest.raises(UsageError, match=r"leave data\.brightness and its like at 0"):
        run("live", data={"brightness": 0.5}, online=True)


def test_a_many_to_one_student_and_a_frozen_stem_train(run):
    made = run(student={"adapters": False}, training={"steps": 30})
    assert made.losses[-1] < made.losses[0]
    frozen = run("frozen", student={"freeze": "stem"}, training={"steps": 12})
    assert frozen.losses[-1] < frozen.losses[0]


def test_tensorboard_gets_the_measurements_when_asked(run):
    made = run(trackers=("tensorboard",), training={"steps": 2})
    assert list(made.directory.root.rglob("events.out.tfevents.*"))
    with pytest.raises(UsageError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        run("other", trackers=("tensorbord",))


class TestRefusals:
    """Each is one line that says what, where and what to do."""

    @pytest.fixture(autouse=True)
    def one_line(self, run):
        def refused(kind, told, **asked):
            with pytest.raises(kind, match=told) as error:
                run(**asked)
            assert "\n" not in str(error.value)

        self.refused = refused

    def test_a_cache_under_another_spec(self, small_world, tmp_path):
        spec = tmp_path / "other.yaml"
        spec.write_text(yaml.safe_dump(small_world.document(encoding="int8")))
        self.refused(SpecMismatchError, r"was made by another spec: encoding.kind: cache 'float16', spec 'int8'",
                     spec=str(spec))  # fmt: skip

    def test_an_incomplete_cache_which_may_be_allowed(self, small_world, tmp_path, run):
        partial = tmp_path / "partial"
        small_world.extract(partial, small_world.data, small_world.document(), limit=8)
        self.refused(CacheError, r"view 0 is incomplete: .* lacks 12 of 20 samples.*--allow-partial",
                     cache=str(partial))  # fmt: skip
        made = run("allowed", cache=str(partial), allow_partial=True)
        assert json.loads((made.directory.root / "run.json").read_text())["reads"]["partial"]

    def test_missing_and_other_data(self, small_world, tmp_path):
        nowhere = str(tmp_path / "nowhere")
        self.refused(SakError, f"images of .* are missing: {nowhere}.*--data says where", data_location=nowhere)
        self.refused(SakError, f"images of .* are missing: {nowhere}.*--val-data says where", val_data=nowhere,
                     val_cache=str(small_world.val_cache))  # fmt: skip
        other = small_world.images(tmp_path / "other", 20, seed=9)
        self.refused(SakError, r"class0|since it was indexed|indexed", data_location=str(other))

    def test_no_batch(self, tmp_path):
        self.refused(UsageError, r"20 samples of view 0 make no batch of 64; take a smaller batch",
                     training={"batch_size": 64})  # fmt: skip
        assert not (tmp_path / "run").exists()

    def test_unknown_teachers_and_levels(self):
        self.refused(UsageError, r"no features of teacher 'dino'; did you mean 'dinov2'\?", teachers=("dino",))
        self.refused(UsageError, r"has levels 1, 2, 3, 4, not 9", levels=(4, 9))
        self.refused(UsageError, r"no teacher 'clp' here; did you mean 'clip'\?", teachers_online=("clp",))
        self.refused(UsageError, r"give one of them", online=True, teachers_online=("clip",))

    def test_a_weight_of_a_teacher_that_is_not_there_or_of_none(self, tmp_path):
        self.refused(UsageError, r"loss weights: 'clib' is no teacher of this run; did you mean 'clip'\?",
                     loss={"weights": {"clib": 2.0}})  # fmt: skip
        self.refused(UsageError, r"every teacher's is 0, nothing would be learnt", teachers=("clip",),
                     loss={"weights": {"clip": 0.0}})  # fmt: skip
        assert not (tmp_path / "run").exists()

    def test_what_a_projection_cannot_give_is_refused_before_there_is_a_directory(self, tmp_path):
        for loss in ({"cosine": "token"}, {"standardise": "mean-var"}):
            self.refused(UsageError, r"sam is cached as a projection.*extract it on its native grid", loss=loss)
        assert not (tmp_path / "run").exists()

    def test_no_cache(self, tmp_path):
        self.refused(SakError, r"no feature cache here", cache=str(tmp_path))

    def test_a_held_out_cache_of_crops_or_of_other_teachers(self, small_world, tmp_path):
        self.refused(UsageError, r"rep_sim is measured on whole images", val_cache=str(small_world.cache))
        document = small_world.document(kind="resize")
        for teacher in document["teachers"].values():
            teacher["weights"] = "random:50"
        small_world.extract(tmp_path / "val", small_world.data, document, limit=4)
        small_world.extract(tmp_path / "val", small_world.data, document)
        self.refused(UsageError, r"clip is another teacher than the one trained with: weights_sha256",
                     val_cache=str(tmp_path / "val"))  # fmt: skip


def test_no_views_are_refused_in_one_line(small_world):
    with pytest.raises(UsageError, match=r"^distill: views: Input should be greater than or equal to 1, got 0$"):
        distill_config(cache=str(small_world.cache), views=0, device="cpu")


def test_flags_go_over_set_and_set_over_the_recipe(small_world, tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    asked = distill_config(
        cache=str(small_world.cache),
        config=recipe,
        overrides=["training.seed=5", "training.batch_size=2", "loss.kind=cos"],
        epochs=0.4,
        batch_size=5,
        device="cpu",
    )
    distill(asked, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    training = written["recipe"]["training"]
    assert (training["seed"], training["batch_size"], training["epochs"], training["steps"]) == (5, 5, 0.4, None)
    assert written["recipe"]["loss"]["kind"] == "cos"
    with pytest.raises(UsageError, match="give --epochs or --steps, one of them"):
        distill_config(cache=str(small_world.cache), epochs=1, steps=1, device="cpu")


def test_only_the_views_asked_for_are_read(run):
    told = json.loads((run(views=1, training={"steps": 2}).directory.root / "run.json").read_text())
    assert told["reads"]["views"] == 1
    assert len(told["reads"]["samples"]) == 1


def test_fresh_views_are_the_caches_in_its_epochs_and_others_after_them(run):
    """20 images in batches of 4: epochs 0 and 1 have the two views of the cache, epoch 2 would have view 0 again."""
    asked = {"training": {"steps": 15}, "online": True}
    cached, fresh = run("cached", **asked), run("fresh", **asked, fresh_views=True)
    assert fresh.losses[:10] == cached.losses[:10]
    assert all(mine != theirs for mine, theirs in zip(fresh.losses[10:], cached.losses[10:], strict=True))


def test_fresh_views_with_a_teacher_from_the_cache_are_refused(run):
    with pytest.raises(UsageError, match=r"--fresh-views.*run every teacher live"):
        run(teachers_online=("clip",), fresh_views=True)
