"""What a study's tables say of runs that are there: no training, run directories as stages leave them."""

import csv
import json
import subprocess
from io import StringIO
from types import SimpleNamespace

import pytest

from pipeline.ablate.columns import ColumnState
from pipeline.ablate.folders import StudyFolder
from pipeline.ablate.jobs import TrainJob, make_work
from pipeline.ablate.plan import make_plan
from pipeline.ablate.results import Results, RowResult, RunResult, _read_bytes, collect, over_seeds, spread
from pipeline.ablate.runner import PROGRAM
from pipeline.ablate.stage_settings import StageSettings
from pipeline.ablate.study import Study
from pipeline.ablate.tables import best_row, latex, markdown, plot_svg, rows_csv
from sak import __version__

SESSION = {"started": "2026-01-01T00:00:00+0000", "ended": "2026-01-01T01:00:00+0000", "stopped": False}
SCORES = {"semseg": 20.0, "depth": 0.8, "normals": 30.0, "edge": 40.0}
TEN_STEPS = {"steps": 10, "batch_size": 2}
MULTI = {"finetune": {"baseline": "multi-task"}}


@pytest.fixture
def results(tmp_path):
    """`results(measured, **study)` of a study of fine-tunings; `measured` gives a row's numbers under a seed."""

    def go(measured, damage=lambda: None, **changes):
        base = {"init": "imagenet", "dataset": "demo-nyud", "data": "nowhere"}
        study = Study(**{"finetune": base, "rows": {"a": {}, "b": MULTI}, "baseline": "b", **changes})
        work, folder = make_work(study, "study"), StudyFolder(tmp_path / "out")
        for run in work.runs:
            root = folder.run(run.jobs["finetune"]).root
            root.mkdir(parents=True, exist_ok=True)
            scores = {f"metric/{task}": value for task, value in measured(run.row.name, run.seed).items()}
            (root / "run.json").write_text(json.dumps({"sessions": [SESSION]}))
            (root / "metrics.jsonl").write_text(json.dumps({"step": 1, "evaluation": True, **scores}) + "\n")
            if "evaluate" in run.jobs:
                stored = {"tasks": {task: {"value": 1 + value} for task, value in measured(run.row.name, 0).items()}}
                job = work.jobs[run.jobs["evaluate"]]
                folder.evaluation(job).write_text(json.dumps({"evaluation": stored}))
        damage()
        return collect(make_plan(study, work, folder), folder, {}, "title")

    return go


def test_a_baseline_of_zero_leaves_delta_m_out_and_the_table_stands(results):
    found = results(lambda row, seed: SCORES | {"semseg": 0.0})
    assert "delta_m" not in found.columns
    assert any("delta_m is left out" in note for note in found.notes)
    assert found.rows[0].values["depth"].mean == 0.8


def test_an_evaluation_goes_before_what_was_measured_in_training_and_damaged_it_is_no_result(results, tmp_path):
    found = results(lambda row, seed: SCORES, evaluate={})
    assert found.rows[0].values["depth"].mean == 1.8
    assert found.rows[0].values["hours"].mean == 1
    stored = sorted((tmp_path / "out" / "runs").glob("*/evaluation-val.json"))[0]
    found = results(lambda row, seed: SCORES, evaluate={}, damage=lambda: stored.write_text("{"))
    (failure,) = found.failures
    assert failure.failure.startswith(f"{stored} is damaged")


def test_damaged_numbers_are_a_failure_with_a_way_out_and_the_others_stand(results, tmp_path):
    results(lambda row, seed: SCORES)
    damaged = sorted((tmp_path / "out" / "runs").glob("*/metrics.jsonl"))[0]
    text = damaged.read_text()
    found = results(lambda row, seed: SCORES, damage=lambda: damaged.write_text('{"step": }\n' + text))
    (failure,) = found.failures
    assert failure.failure.startswith(f"{damaged.parent} is damaged")
    assert failure.damaged
    assert sorted(row.runs for row in found.rows) == [0, 1]


def test_seeds_that_reach_no_stage_of_a_row_are_one_run_without_a_spread(results):
    found = results(lambda row, seed: SCORES, seeds=[0, 1, 2], seeded=["distill"])
    assert [(row.runs, row.planned) for row in found.rows] == [(1, 1)] * 2
    assert found.rows[0].values["semseg"].deviation is None
    assert "the mean of 1 seeds" in found.notes[0]


def test_what_one_distillation_gives_to_all_fine_tunings_has_no_spread():
    runs = [
        RunResult("a", seed, {"rep_sim": 0.5, "semseg": 20.0 + seed}, (), {"distill": "d", "finetune": f"f{seed}"})
        for seed in (0, 1)
    ]
    assert over_seeds(runs, "rep_sim").deviation is None
    assert over_seeds(runs, "semseg").deviation == pytest.approx(0.5**0.5)


def test_a_plan_counts_the_images_of_evaluations(tmp_path, scenes):
    tuned = {"dataset": "demo-nyud", "data": str(scenes), "init": "imagenet", "recipe.training": TEN_STEPS}
    rates = {"finetune": 1, "evaluate": 1}
    study = Study(finetune=tuned, evaluate={}, rows={"some": {"evaluate.limit": 2}, "all": {}}, rates=rates)
    plan = make_plan(study, make_work(study, "study"), StudyFolder(tmp_path / "out"))
    assert [each.seconds for each in plan.jobs.values()] == [20, 2, 3]


def test_stages_are_run_by_this_program_wherever_the_user_is(tmp_path):
    (tmp_path / "cli.py").write_text("print('another program')\n")
    said = subprocess.run([*PROGRAM, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"sak-cli {__version__}"


def row(name, value, *, labels=None, series="", random=False):
    return RowResult(name, series, labels or {}, {"rep_sim": spread([value])}, ("k",), 1, 1, random)


def table_of(*rows, plot=None):
    return Results("Half a $ and _more_", rows, (), ("rep_sim",), plot=plot)


def test_a_number_that_is_none_is_shown_and_is_never_the_best():
    found = table_of(row("a", float("nan")), row("b", 0.5), row("c", 0.4))
    assert best_row("rep_sim", found) == "b"
    assert "| a | nan | 1 |" in markdown(found)


def test_every_table_and_picture_says_that_teachers_are_random():
    found = table_of(row("a", 0.5, random=True), row("b", 0.4), plot="rep_sim")
    assert "a (RANDOM teachers) &" in latex(found)
    assert [line["random"] for line in csv.DictReader(StringIO(rows_csv(found)))] == ["yes", ""]
    assert "(RANDOM teachers)" in plot_svg(found)


def test_names_are_text_in_latex_and_in_the_picture():
    names = ["50 % & more_of #1", "a $\\frac$ b $", "x^2 ~ {y} \\"]
    found = table_of(*(row(name, 0.5) for name in names), plot="rep_sim")
    assert r"50 \% \& more\_of \#1 &" in latex(found)
    assert r"x\textasciicircum{}2 \textasciitilde{} \{y\} \textbackslash{} &" in latex(found)
    assert "a $\\frac$ b $" in plot_svg(found)


def test_a_picture_over_an_axis_has_a_line_for_all_else_that_differs():
    rows = [
        row(f"{series}, {share}, {cosine}", 0.1 * place, series=series, labels={"share": share, "cosine": cosine})
        for place, series in enumerate("abcd")
        for share in ("0.5", "1.0")
        for cosine in ("map", "token")
    ]
    drawn = plot_svg(table_of(*rows, plot="share"))
    assert all(f"{series}, {cosine}" in drawn for series in "abcd" for cosine in ("map", "token"))


@pytest.mark.parametrize(("flags", "read"), [({}, 4), ({"views": 3}, 3)])
def test_bytes_of_an_image_are_those_of_all_views_that_a_run_reads(flags, read):
    column = ColumnState(
        "cache", "dino", "int8", random=False, name="k", wanted=8, there=8, bytes_per_image=5.0, views=4
    )
    job = TrainJob("distill-1", "distill", StageSettings("distill", flags, {}, None), ())
    plan = SimpleNamespace(jobs={"distill-1": SimpleNamespace(job=job, columns=[column])})
    assert _read_bytes(plan, "distill-1", ["k"]) == 5.0 * read
    assert _read_bytes(plan, "distill-1", ["another"]) == 0
