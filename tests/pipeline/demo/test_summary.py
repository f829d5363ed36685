"""The demo's last words: rep_sim by teacher, the tasks beside the baseline, where to look."""

import json

import pytest

from pipeline.demo.summary import summary
from sak.errors import SakError


@pytest.fixture
def demo(tmp_path):
    for folder in ("runs/distill", "runs/sak/figures", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/distill/run.json").write_text(json.dumps({"reads": {"random": ["clip"]}}))
    first = {"step": 1, "rep_sim": 0.1, "rep_sim/clip": 0.1, "rep_sim/sam": 0.1}
    last = {"step": 2, "rep_sim": 0.8, "rep_sim/clip": 0.75, "rep_sim/sam": 0.85, "rep_sim/sam/level3": 0.9}
    (tmp_path / "runs/distill/metrics.jsonl").write_text("\n".join(map(json.dumps, (first, last, {"loss": 1}))))
    task = {"metric": "mErr", "value": 18.0, "unit": "degrees", "lower_is_better": True}
    baseline = {"metrics": {"normals": 20.0}, "gain_per_task": {"normals": 10.0}, "delta_m": 10.0}
    document = {"evaluation": {"tasks": {"normals": task}}, "baseline": baseline}
    (tmp_path / "runs/sak/evaluation-val.json").write_text(json.dumps(document))
    (tmp_path / "data/contact_sheet.png").write_bytes(b"")
    return tmp_path


def test_the_last_measurement_and_the_gain_are_told_and_random_teachers_are_marked(demo):
    told = summary(demo)
    for words in ("clip RANDOM  0.7500", "sam          0.8500", "all, mean    0.8000", "18.00 degrees  20.00 degrees"):
        assert words in told
    assert "delta_m +10.00 %" in told
    assert "level3" not in told


def test_only_what_is_there_is_pointed_at(demo):
    told = summary(demo)
    assert "contact_sheet.png" in told
    assert "gates.png" not in told


def test_a_demo_that_was_not_made_is_one_line(tmp_path):
    with pytest.raises(SakError, match="run `make demo`"):
        summary(tmp_path)
