"""A run's directory: what is refused, what a resume compares, what is forgotten."""

import json

import pytest

from pipeline.train.run import RunDirectory, differences, random_teachers
from sak.errors import SakError, UsageError

CONFIG = {"recipe": {"training": {"steps": 3, "rate": 0.1}}, "cache": "c"}


def test_an_existing_directory_is_refused_unless_it_is_a_run_to_be_replaced(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.record({"step": 1})
    with pytest.raises(UsageError, match="go on with --resume, or replace it with --overwrite"):
        RunDirectory.create(run.root, CONFIG)
    assert RunDirectory.create(run.root, CONFIG, overwrite=True).metrics() == []
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").touch()
    with pytest.raises(UsageError, match="is not a run's directory"):
        RunDirectory.create(tmp_path / "thesis", CONFIG, overwrite=True)
    assert (tmp_path / "thesis/chapter.tex").exists()


def test_a_changed_configuration_is_listed_and_refused_unless_forced(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    changed = {"recipe": {"training": {"steps": 3, "rate": 0.2}}, "cache": "d"}
    with pytest.raises(UsageError, match=r"recipe.training.rate: was 0.1, now 0.2; cache: was 'c', now 'd'.*--force"):
        RunDirectory.resume(run.root, changed)
    RunDirectory.resume(run.root, changed, force=True)
    RunDirectory.resume(run.root, changed)


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match="not a run to resume"):
        RunDirectory.resume(tmp_path, CONFIG)


def test_differences_name_settings_by_their_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [("a.c", 2, None), ("a.d", None, 3)]


def test_measurements_after_the_checkpoint_are_forgotten_and_a_cut_line_too(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    for step in (1, 2, 3):
        run.record({"step": step})
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_every_session_is_kept_with_its_versions_and_its_end(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.describe(stage="distill")
    run.conclude(step=7, stopped=True)
    run.describe(stage="distill")
    told = json.loads((run.root / "run.json").read_text())
    first, second = told["sessions"]
    assert first["step"] == 7
    assert first["stopped"]
    assert first["ended"] >= first["started"]
    assert "ended" not in second
    assert {"torch", "pillow", "opencv-python-headless"} <= set(second["packages"])


def test_a_directory_that_a_kill_left_unmade_is_as_good_as_empty(tmp_path, monkeypatch):
    def die(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "replace", die)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.create(tmp_path / "run", CONFIG)
    monkeypatch.undo()
    assert list((tmp_path / "run").iterdir())
    assert RunDirectory.create(tmp_path / "run", CONFIG).metrics() == []


def test_a_killed_replacement_is_a_run_still_and_can_be_replaced_again(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    run.record({"step": 1})

    def die(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.train.run.shutil.rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.create(run.root, CONFIG, overwrite=True)
    monkeypatch.undo()
    assert RunDirectory.create(run.root, CONFIG, overwrite=True).metrics() == []


def test_a_directory_in_which_a_run_trains_is_neither_resumed_nor_replaced(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    with run.held():
        for start in (lambda: RunDirectory.resume(run.root, CONFIG),
                      lambda: RunDirectory.create(run.root, CONFIG, overwrite=True)):  # fmt: skip
            with pytest.raises(UsageError, match="another process trains here"):
                start()
    RunDirectory.resume(run.root, CONFIG)


def test_a_run_that_read_other_samples_is_another_run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    RunDirectory.resume(run.root, CONFIG, reads={"samples": (8,)})
    run.describe(reads={"samples": (8,), "levels": {"sam": (3, 6)}})
    RunDirectory.resume(run.root, CONFIG, reads={"samples": (8,), "levels": {"sam": (3, 6)}})
    with pytest.raises(UsageError, match=r"reads.samples: was \[8\], now \[20\]; .*--force"):
        RunDirectory.resume(run.root, CONFIG, reads={"samples": (20,), "levels": {"sam": (3, 6)}})


def test_the_evaluation_of_the_checkpoints_step_is_kept_only_where_the_checkpoint_knows_of_it(tmp_path):
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    lines = [{"step": 2, "loss": 1.0}, {"step": 2, "evaluation": True}, {"step": 4, "loss": 0.5},
             {"step": 4, "evaluation": True}]  # fmt: skip
    for line in lines:
        run.record(line)
    run.forget_after(4, measured=4)
    assert run.metrics() == lines
    run.forget_after(4, measured=2)
    assert run.metrics() == lines[:3]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", CONFIG)

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "open", full)
    with pytest.raises(SakError, match=r"metrics.jsonl: no space left; free some") as told:
        run.record({"step": 1})
    assert "\n" not in str(told.value)


def test_random_teachers_are_known_wherever_a_run_names_them():
    about = {
        "reads": {"random": ["a"], "live": {"b": {"random": True}, "c": {"random": False}}},
        "teachers": {"d": {"name": "d", "weights": "random:0"}, "c": {"name": "c", "weights": "pretrained"}},
        "probe": {"teacher": {"name": "e", "weights": "random:1"}},
    }
    assert random_teachers(about) == ("a", "b", "d", "e")
    assert random_teachers({"reads": 3, "teachers": ["a"], "probe": None}) == ()
