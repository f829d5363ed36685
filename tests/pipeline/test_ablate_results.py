"""What a study's tables say of runs that are there: no training, run directories as stages leave them."""

import json

import pytest

from pipeline.ablation.folders import StudyFolder
from pipeline.ablation.jobs import make_work
from pipeline.ablation.plan import make_plan
from pipeline.ablation.results import collect
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
