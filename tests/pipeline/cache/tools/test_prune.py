"""`prune`: plans, and does no more than planned."""

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.cache.reader.feature_cache import FeatureCache
from pipeline.cache.tools.inventory import du, ls
from pipeline.cache.tools.prune import plan_prune, prune
from pipeline.cache.tools.verify import verify
from sak.errors import SakError, UsageError


@pytest.fixture
def filled(writer):
    maker = writer()
    for teacher in ("dino", "clip", "sam"):
        maker.write(teacher)
    return maker


def teachers(candidates):
    return sorted(each.name.partition("-")[0] for each in candidates)


def test_a_plan_changes_nothing_and_says_what_would_go(filled):
    before = sorted(Path(filled.place).rglob("*"))
    plan = plan_prune(filled.place, names=["dino"])
    assert teachers(plan.remove) == ["dino"]
    assert plan.nbytes == next(each.nbytes for each in du(filled.place) if each.name.startswith("dino"))
    assert sorted(Path(filled.place).rglob("*")) == before
    assert json.loads(json.dumps(plan.as_dict()))["nbytes"] == plan.nbytes


def test_a_column_with_a_damaged_manifest_can_be_pruned(filled):
    next(Path(filled.place).glob("columns/sam-*/*/manifest.json")).write_bytes(b"{")
    prune(plan_prune(filled.place, names=["sam"]))
    assert teachers(ls(filled.place)) == ["clip", "dino"]


def test_random_weights_are_marked(filled):
    text = plan_prune(filled.place, older_than_days=0).to_text()
    assert [line.partition("-")[0] for line in text.splitlines() if "RANDOM" in line] == ["clip"]


def test_pruning_removes_the_column_and_nothing_else(filled):
    plan = plan_prune(filled.place, names=["dino"])
    assert prune(plan) == plan.nbytes
    assert teachers(ls(filled.place)) == ["clip", "sam"]
    assert not list(Path(filled.place).glob("columns/dino*"))
    assert verify(filled.place, deep=True).sound
    assert prune(plan) == plan.nbytes, "what is gone already is no error"


def test_columns_that_are_being_written_are_spared(filled):
    column = filled.open("clip")
    with column.lease(1, 0):
        plan = plan_prune(filled.place, older_than_days=0)
        assert teachers(plan.remove) == ["dino", "sam"]
        assert teachers(plan.spare) == ["clip"]
        assert "being written" in plan.spare[0].spared
    plan = plan_prune(filled.place, names=["clip"])
    with column.lease(1, 0):
        assert prune(plan) == 0, "taken up after the plan was made"
    assert "clip" in teachers(ls(filled.place))


def test_age_is_counted_from_the_last_change(filled):
    old = time.time() - 10 * 86_400
    for path in Path(filled.place).glob("columns/dino-*/**/*"):
        os.utime(path, (old, old))
    assert teachers(plan_prune(filled.place, older_than_days=9).remove) == ["dino"]
    assert teachers(plan_prune(filled.place, older_than_days=11).remove) == []


def test_what_any_run_names_is_kept(filled, tmp_path):
    cache = FeatureCache.open(filled.place, ["dino"])
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"cache": cache.describe()}))
    assert teachers(plan_prune(filled.place, unused_by=[tmp_path / "runs"]).remove) == ["clip", "sam"]
    assert teachers(plan_prune(filled.place, unused_by=[run], names=["sam"]).remove) == ["sam"]
    (run / "run.json").write_text("{")
    with pytest.raises(SakError, match="what it uses is not known"):
        plan_prune(filled.place, unused_by=[run])
    with pytest.raises(UsageError, match="no run here"):
        plan_prune(filled.place, unused_by=[tmp_path / "cache"])


def test_a_name_must_mean_one_column(filled, writer, made):
    other = made.spec(teachers={"dino": {"model": "timm/made_up.dino", "levels": [2, 4], "encoding": "int4"}})
    writer(spec=other).write("dino")
    with pytest.raises(UsageError, match="'dino' means dino-"):
        plan_prune(filled.place, names=["dino"])
    with pytest.raises(UsageError, match="no column 'dion'"):
        plan_prune(filled.place, names=["dion"])
    exact = next(each.name for each in ls(filled.place) if each.encoding == "int4")
    assert [each.name for each in plan_prune(filled.place, names=[exact]).remove] == [exact]


def test_pruning_without_a_condition_is_refused(filled):
    with pytest.raises(UsageError, match="prune what"):
        plan_prune(filled.place)


def test_only_the_foremost_folder_of_an_overlay_is_pruned(writer):
    below = writer("ro")
    below.write("dino", limit=8)
    overlay = writer(place=f"{writer('rw').place}:{below.place}")
    overlay.write("dino")
    prune(plan_prune(overlay.place, names=["dino"]))
    assert teachers(ls(overlay.place)) == ["dino"]
    assert ls(below.place)[0].blocks == 1


def test_a_column_cut_off_while_it_was_pruned_holds_nothing_that_counts(filled):
    column = filled.open("sam").column
    column.location.delete_tree("records")
    assert not column.fresh().present(0).any()
    assert filled.open("sam").pending(1) == [(0, 0), (0, 1), (0, 2)]


def test_a_column_that_another_counts_on_goes_with_a_warning(writer):
    small, large = writer(keys=tuple(f"n{number:03d}" for number in range(8))), writer()
    small.write("dino")
    large.write("dino", elsewhere=set(small.keys))
    held, relying = sorted(ls(small.place), key=lambda each: each.samples)
    plan = plan_prune(small.place, older_than_days=0)
    assert [each.needed_by for each in plan.remove] == [(), ()], "both go, so nobody is left to miss anything"
    folder = Path(small.place, "columns", relying.name, relying.data)
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + 9e6, time.time() + 9e6))
    (gone,) = plan_prune(small.place, older_than_days=0).remove
    assert (gone.data, gone.needed_by) == (held.data, (f"columns/{relying.name}/{relying.data}",))
    assert "prune both, or keep both" in plan_prune(small.place, older_than_days=0).to_text()
