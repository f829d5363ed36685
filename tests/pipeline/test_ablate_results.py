"""What a study's tables say of runs that are there: no training, run directories as stages leave them."""

import json

import pytest

from pipeline.ablation.folders import StudyFolder
from pipeline.ablation.jobs import make_work
from pipeline.ablation.plan import make_plan
from pipeline.ablation.results import RunResult, collect, over_seeds
from pipeline.ablation.study import Study

SESSION = {"started": "2026-01-01T00:00:00+0000", "ended": "2026-01-01T01:00:00+0000", "stopped": False}
SCORES = {"semseg": 20.0, "depth": 0.8, "normals": 30.0, "edge": 40.0}
MULTI = {"finetune": {"baseline": "multi-task"}}


@pytest.fixture
def results(tmp_path):
    """`results(measured, **study)` of a study of fine-tunings; `measured` gives a row's numbers under a seed."""

    def go(measured, **changes):
        base = {"init": "imagenet", "dataset": "demo-nyud", "data": "nowhere"}
        study = Study(**{"finetune": base, "rows": {"a": {}, "b": MULTI}, "baseline": "b", **changes})
        work, folder = make_work(study, "study"), StudyFolder(tmp_path / "out")
        for run in work.runs:
            root = folder.run(run.jobs["finetune"]).root
            root.mkdir(parents=True, exist_ok=True)
            scores = {f"metric/{task}": value for task, value in measured(run.row.name, run.seed).items()}
            (root / "run.json").write_text(json.dumps({"sessions": [SESSION]}))
            (root / "metrics.jsonl").write_text(json.dumps({"step": 1, "evaluation": True, **scores}) + "\n")
        return collect(make_plan(study, work, folder), folder, {}, "title")

    return go


def test_a_baseline_of_zero_leaves_delta_m_out_and_the_table_stands(results):
    found = results(lambda row, seed: SCORES | {"semseg": 0.0})
    assert "delta_m" not in found.columns
    assert any("delta_m is left out" in note for note in found.notes)
    assert found.rows[0].values["depth"].mean == 0.8


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
