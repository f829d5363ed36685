"""Studies: what runs, once each; what a kill, a failure and a second call leave; names that do not exist."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.ablate.columns import _find_images
from pipeline.ablate.runner import JobSettings
from pipeline.ablate.stage import AblateConfig, run_ablation
from pipeline.ablate.stage_settings import merged
from pipeline.ablate.study import load_study
from pipeline.tables import paper_table
from sak.errors import SakError, UsageError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FAKE = (sys.executable, str(HERE / "ablation_stage.py"))


@pytest.fixture
def study(small_world, tiny_recipe, tmp_path, monkeypatch):
    """`study(...)` carries out a study on the small cache with stand-in stages, and tells what was called."""
    log = tmp_path / "calls"
    monkeypatch.setenv("STAGE_LOG", str(log))

    class Study:
        file = tmp_path / "study.yaml"
        out = tmp_path / "out"

        def write(self, **changes):
            document = {
                "title": "Teachers",
                "device": "cpu",
                "extract": {"cache": str(small_world.cache)},
                "distill": {"recipe": tiny_recipe},
                "rows": {"DINOv2": {"distill.teachers": ["dinov2"]}, "CLIP": {"distill.teachers": ["clip"]}},
                "seeds": [0, 1],
                **changes,
            }
            self.file.write_text(yaml.safe_dump(document, sort_keys=False))
            return self

        def __call__(self, *, jobs=2, dry_run=False, overrides=()):
            config = AblateConfig(self.file, self.out, jobs, dry_run, None, overrides, FAKE)
            return run_ablation(config, lambda line: None)

        @property
        def calls(self):
            return log.read_text().splitlines() if log.exists() else []

        def table(self, name="results.csv"):
            with (self.out / name).open() as file:
                return list(csv.DictReader(file))

    return Study()


def test_every_row_runs_under_every_seed_and_a_second_call_runs_nothing(study):
    report = study.write()()
    assert report.exit_code == 0
    assert sorted(study.calls) == ["distill clip new"] * 2 + ["distill dinov2 new"] * 2
    again = study()
    assert len(study.calls) == 4
    assert "nothing was run" in again.to_text(100)


def test_the_tables_have_mean_and_deviation_over_seeds_and_the_keys_read(study):
    study.write()()
    dino, clip = study.table()
    assert float(dino["rep_sim"]) == pytest.approx(0.0605)
    assert float(dino["rep_sim std"]) == pytest.approx(0.000707, abs=1e-6)
    assert (dino["keys"], clip["keys"], dino["seeds"]) == ("dinov2-0123", "clip-0123", "2")
    assert [line["seed"] for line in study.table("runs.csv")] == ["0", "1", "0", "1"]
    text = (study.out / "results.md").read_text()
    assert "**0.0605 ± 0.0007**" in text
    assert r"$\mathbf{0.0605 \pm 0.0007}$" in (study.out / "results.tex").read_text()


def test_equal_trainings_are_one(study):
    study.write(rows={"a": {"distill.teachers": ["clip"]}, "b": {"distill.teachers": ["clip"]}}, seeds=[3])()
    assert study.calls == ["distill clip new"]
    first, second = study.table()
    assert first["rep_sim"] == second["rep_sim"]


def test_a_grid_combines_all_axes_with_all_rows(study):
    axes = {"distill.recipe.loss.cosine": ["map", "token"], "distill.recipe.training.steps": {"short": 2, "long": 4}}
    study.write(axes=axes, seeds=[0])()
    assert [line["row"] for line in study.table()] == [
        f"{row}, {cosine}, {steps}"
        for row in ("DINOv2", "CLIP")
        for cosine in ("map", "token")
        for steps in ("short", "long")
    ]
    assert len(study.calls) == 8


def test_a_failure_is_listed_with_its_reason_and_the_others_go_on(study, monkeypatch):
    monkeypatch.setenv("STAGE_FAIL", "dinov2")
    report = study.write()()
    assert report.exit_code == 1
    assert "no features of teacher 'dinov2'" in report.to_text(100)
    dino, clip = study.table()
    assert (dino["seeds"], clip["seeds"]) == ("0", "2")
    assert "no features of teacher" in study.table("runs.csv")[0]["failure"]
    monkeypatch.delenv("STAGE_FAIL")
    assert study().exit_code == 0
    assert [line["seeds"] for line in study.table()] == ["2", "2"]


def test_a_dry_run_says_runs_columns_and_times_and_writes_nothing(study):
    report = study.write(rates={"distill": 12.0, "basis": "a guess"})(dry_run=True)
    text = report.to_text(100)
    assert "4 runs of 2 rows, 4 trainings" in text
    assert "dinov2-" in text
    assert "distill: 4 to do, 8 s (by a guess)" in text
    assert not study.out.exists()
    assert study.calls == []


def test_the_plan_names_for_each_row_the_columns_of_its_own_teachers(study):
    lines = study.write(seeds=[0])(dry_run=True).to_text(100).splitlines()
    first, second = (next(line for line in lines if line.startswith(row)) for row in ("DINOv2", "CLIP"))
    assert ("dinov2-" in first, "clip-" in first, "dinov2-" in second, "clip-" in second) == (True, False, False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"a": {"distil.teachers": ["clip"]}}}, r"a: distil\.teachers.*did you mean 'distill'"),
        ({"rows": {"a": {"distill.teacher": ["clip"]}}}, r"distill\.teacher .*did you mean 'teachers'"),
        (
            {"rows": {"a": {"distill.recipe.loss.cosinus": 1}}},
            r"a: distill\.recipe: unknown key loss\.cosinus.*did you mean 'cosine",
        ),
        ({"rows": {"a": {"distill.cache": "x"}}}, r"distill\.cache is decided by the study's other sections"),
        ({"axes": {"distill.recipe.training.seeds": [1]}}, r"unknown key training\.seeds.*did you mean 'seed'"),
        ({"baseline": "CLIPS"}, r"there is no row 'CLIPS'; did you mean 'CLIP'"),
        ({"seeded": ["distil"]}, r"'distil' draws nothing; did you mean 'distill'"),
        ({"rows": {"a": {"distill": "no"}}}, r"a: distill is 'no'; give it settings, or say on or off"),
        ({"distill": 3}, r"distill is 3; give it settings, or say on or off"),
        ({"axes": {"extract.views": [1, 4]}}, r"extract\.views says what to extract, .* distill\.views"),
        ({"row": {}}, r"unknown key row; did you mean 'rows'"),
        ({"paper": "tabel3"}, r"numbers of 'tabel3' are not known; did you mean 'table"),
        ({"columns": ["rep_sym"]}, r"columns: there is no column 'rep_sym'; did you mean 'rep_sim'"),
        ({"plot": "bytes"}, r"plot: there is no column 'bytes'"),
        (
            {"axes": {"distill.recipe.training.seed": [0, 1]}},
            r"distill\.recipe\.training\.seed is decided by the study's seeds",
        ),
        ({"axes": {"distill.levels": []}}, r"axes\.distill\.levels is empty"),
        ({"oracles": {"best": []}}, r"oracles\.best: \[\] is empty"),
        ({"oracles": {"CLIP": ["DINOv2"]}}, r"two rows are called 'CLIP'"),
        ({"oracles": {"best": ["CLIP", "CLIP"]}}, r"oracles\.best: .* names a row twice"),
        ({"rows": {"a": {"distill": False}}}, r"a: nothing is trained"),
        ({"distill": {"config": "missing.yaml"}}, r"missing\.yaml cannot be read as a recipe"),
        ({"extract": {"cache": "nowhere"}}, r"nowhere: no feature cache here"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest_one_before_anything_runs(study, changes, message):
    study.write(**changes)
    with pytest.raises(SakError, match=message) as error:
        study()
    assert "\n" not in str(error.value)
    assert study.calls == []


def ablate_process(study, tmp_path, **environment):
    """The study in a process of its own."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.ablate.stage import AblateConfig, run_ablation\n"
        f"config = AblateConfig(Path({str(study.file)!r}), Path({str(study.out)!r}), 2, program={FAKE!r})\n"
        "report = run_ablation(config, lambda line: print(line, flush=True))\n"
        "sys.exit(report.exit_code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


def until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_steps(study):
    return len(list(study.out.glob("runs/*/checkpoints/last"))) >= 2


@pytest.mark.slow
def test_killed_in_the_middle_its_stages_save_and_a_second_call_finishes(study, tmp_path):
    process = ablate_process(study.write(), tmp_path, STAGE_SECONDS="0.5")
    until(lambda: has_steps(study))
    process.kill()
    process.communicate()
    report = study()
    assert report.exit_code == 0
    assert study.calls.count("distill dinov2 resume") == 2
    assert [line["seeds"] for line in study.table()] == ["2", "2"]


@pytest.mark.slow
def test_an_interrupt_stops_the_stages_after_saving_within_seconds(study, tmp_path):
    process = ablate_process(study.write(), tmp_path, STAGE_SECONDS="0.3")
    until(lambda: has_steps(study))
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert time.monotonic() - start < 20
    assert "save and stop" in said
    states = [yaml.safe_load(path.read_text())["sessions"][-1] for path in study.out.glob("runs/*/run.json")]
    assert all(state["stopped"] for state in states)
    assert study().exit_code == 0


def test_a_setting_replaces_what_excludes_it_and_keeps_what_is_beside_it():
    base = {"training": {"epochs": 3, "batch_size": 8}}
    assert merged(base, {"training.steps": 5}) == {"training": {"steps": 5, "batch_size": 8}}
    assert base == {"training": {"epochs": 3, "batch_size": 8}}


def test_set_changes_the_base_of_every_row(study, small_world):
    study.write(extract={"cache": "elsewhere"})
    changed = load_study(study.file, [f"extract.cache={small_world.cache}"])
    assert changed.extract == {"cache": str(small_world.cache)}
    assert load_study(study.file, ["seeds=[4]"]).seeds == (4,)
    with pytest.raises(UsageError, match="there is no stage 'extrakt'"):
        load_study(study.file, ["extrakt.cache=x"])
    with pytest.raises(UsageError, match=r"rows\.CLIP\.distill: of rows the whole can be set, not a part"):
        load_study(study.file, ["rows.CLIP.distill=off"])


def test_a_stage_is_off_or_on_in_the_base_as_in_a_row(study):
    tuned = {"init": "imagenet", "dataset": "demo-nyud", "data": "nowhere"}
    axes = {"evaluate": [True, False]}
    base = study.write(distill=False, finetune=tuned, evaluate={"limit": 2}, rows={"a": {"finetune": None}}, axes=axes)
    assert load_study(base.file).distill is None
    runs = study(dry_run=True).plan.work.runs
    assert [(run.row.name, tuple(run.jobs)) for run in runs if run.seed == 0] == [
        ("a, on", ("finetune", "evaluate")),
        ("a, off", ("finetune",)),
    ]
    assert runs[0].row.settings["evaluate"] == {"limit": 2}


RECIPES = sorted(path.stem for path in (ROOT / "recipes" / "ablations").glob("*.yaml"))


@pytest.fixture
def no_drawing(monkeypatch):
    """Facts of a spec's teachers, so that nothing of the size of SAM is built in a test."""
    from pipeline.ablate import columns
    from pipeline.ablate import stage_settings as specs
    from pipeline.cache.spec import parse_spec
    from sak.teachers.recipe import TeacherFacts

    def facts(document):
        large = "large" in str(document)
        return {name: TeacherFacts(1024, 24, (27, 27)) if large else TeacherFacts(768, 12, (24, 24))
                for name in document["teachers"]}  # fmt: skip

    monkeypatch.setattr(specs, "parse_spec", lambda document, source: parse_spec(document, source=source,
                                                                                facts=facts(document)))  # fmt: skip
    plan = columns.plan_cache
    monkeypatch.setattr(columns, "plan_cache", lambda spec, samples: plan(
        spec, samples, facts=facts(spec.model_dump(mode="json"))))  # fmt: skip
    yield
    specs._resolved.cache_clear()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_planned(name, tmp_path, monkeypatch, no_drawing):
    monkeypatch.chdir(ROOT)
    report = run_ablation(AblateConfig(Path(f"recipes/ablations/{name}.yaml"), tmp_path / "out", dry_run=True), print)
    assert report.exit_code == 0
    assert report.plan.pending
    text = (ROOT / f"recipes/ablations/{name}.yaml").read_text()
    assert f"sak-cli ablate recipes/ablations/{name}.yaml" in text
    assert "# Disk: " in text
    assert ("Two cores:" if name.endswith("-demo") else "One H100:") in text


def test_the_papers_tables_have_recipes_and_small_ones():
    wanted = (*(f"table{number}" for number in range(2, 10)), "figure1", "figure5", "encodings", "views")
    assert set(RECIPES) == {*wanted, *(f"{name}-demo" for name in wanted)}


def test_the_rows_of_a_papers_table_are_named_as_there():
    for name in ("table2", "table3", "table4", "table7", "table8", "table9"):
        study = load_study(ROOT / "recipes" / "ablations" / f"{name}.yaml")
        assert set(paper_table(name).rows) <= {*study.rows, *study.oracles}


def test_the_documented_study_can_be_planned(tmp_path, monkeypatch, no_drawing):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ablations.md").read_text(), re.S)
    (tmp_path / "study.yaml").write_text(example)
    plan = run_ablation(AblateConfig(tmp_path / "study.yaml", tmp_path / "out", dry_run=True), print).plan
    stages = [each.job.stage for each in plan.pending]
    assert len(plan.work.runs) == (2 * 2 + 1) * 3
    assert (stages.count("distill"), stages.count("finetune"), stages.count("evaluate")) == (4, 15, 15)
    assert stages.count("extract") == 2


def test_a_plot_shows_the_first_column_against_what_was_asked(study):
    study.write(plot="bytes_per_image")()
    assert "DINOv2" in (study.out / "results.svg").read_text()


def test_moved_images_are_the_same_data_and_a_copy_beside_them_is_looked_at(small_world, study, tmp_path):
    images, moved, cache = small_world.images(tmp_path / "images", 4), tmp_path / "moved", tmp_path / "cache"
    small_world.extract(cache, images, small_world.document())
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(small_world.document()))
    study.write(extract={"spec": str(spec), "data": str(moved), "cache": str(cache)})
    shutil.copytree(images, moved)
    plan = study(dry_run=True).plan
    assert {column.teacher for column in plan.missing} == {"dinov2", "clip"}
    shutil.rmtree(images)
    _find_images.cache_clear()
    plan = study(dry_run=True).plan
    assert plan.missing == ()
    names = [column.name.partition("-")[0] for each in plan.pending for column in each.columns]
    assert names == ["dinov2", "dinov2", "clip", "clip"]
    image = next(moved.rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"more")
    _find_images.cache_clear()
    assert len(study(dry_run=True).plan.missing) == 2


@pytest.mark.long
def test_a_whole_study_extracts_each_teacher_once_and_goes_through_every_stage(
    small_world, tiny_recipe, scenes, finetune_recipe, tmp_path
):
    """The real stages: two rows that share one extraction, a baseline, metrics of all, delta_m; again: nothing."""
    spec, data = tmp_path / "spec.yaml", small_world.images(tmp_path / "images", 12)
    document = small_world.document("int8")
    del document["teachers"]["sam"]
    spec.write_text(yaml.safe_dump(document))
    quick = {**tiny_recipe, "training": {**tiny_recipe["training"], "steps": 2}}
    tuned = {**finetune_recipe, "training": {**finetune_recipe["training"], "steps": 2}}
    study = {
        "device": "cpu",
        "extract": {"spec": str(spec), "data": str(data), "cache": str(tmp_path / "cache")},
        "distill": {"recipe": quick},
        "finetune": {"dataset": "demo-nyud", "data": str(scenes), "recipe": tuned},
        "evaluate": {"workers": 0, "pictures": 0},
        "baseline": "multi-task",
        "rows": {"one": {"distill.teachers": ["clip"]}, "two": {}},
        "apart": {"multi-task": {"distill": False, "finetune": {"init": "imagenet", "baseline": "multi-task"}}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    config = AblateConfig(tmp_path / "study.yaml", tmp_path / "out")
    report = run_ablation(config, print)
    assert report.exit_code == 0, report.to_text(100)
    assert [each.job.stage for each in report.plan.jobs.values()].count("extract") == 1
    (reported,) = (tmp_path / "cache" / "reports").glob("*.json")
    blocks = json.loads(reported.read_text())["blocks"]
    assert sorted(teacher for block in blocks for teacher in block["teachers"]) == ["clip"] * 2 + ["dinov2"] * 2
    with (tmp_path / "out" / "results.csv").open() as file:
        one, two, baseline = csv.DictReader(file)
    assert float(baseline["delta_m"]) == 0
    assert all(float(row[task]) >= 0 for row in (one, two) for task in ("semseg", "depth", "normals", "edge"))
    assert (len(one["keys"].split()), len(two["keys"].split())) == (1, 2)
    again = run_ablation(config, print)
    assert "nothing was run" in again.to_text(100)


def test_the_thread_counts_of_a_stage_never_differ(monkeypatch):
    settings = JobSettings(jobs=2, device="cpu", cores=8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert settings.environment(0) == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert settings.environment(0) == {"MKL_NUM_THREADS": "3"}


def test_a_limit_that_a_training_would_not_heed_is_refused(small_world, study, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(small_world.document()))
    extract = {"spec": str(spec), "data": str(small_world.data), "cache": str(tmp_path / "cache")}
    with pytest.raises(UsageError, match=r"extract\.limit is 4 and 8 for one cache"):
        study.write(extract=extract, axes={"extract.limit": [4, 8]})(dry_run=True)
    with pytest.raises(UsageError, match=r"held_out\.limit: rep_sim is measured on all"):
        study.write(extract=extract, held_out={**extract, "limit": 4})(dry_run=True)
    with pytest.raises(UsageError, match=r"has more than the first 2 images"):
        study.write(extract={**extract, "cache": str(small_world.cache), "limit": 2})(dry_run=True)
