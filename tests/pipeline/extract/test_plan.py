"""Jobs, what they weigh, and where the time of a block goes."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.cache.records import Absent
from pipeline.cache.stores.base import ArrayLayout, ColumnLayout
from pipeline.extract.calibrate import Speed
from pipeline.extract.columns import ExtractConfig
from pipeline.extract.job import DoesNotFitError, forward_in_pieces
from pipeline.extract.overlap import StageSeconds
from pipeline.extract.plan import ExtractionPlan, Job, gigabytes, make_jobs
from pipeline.extract.report import Tally
from pipeline.extract.stage import refuse_bad_data
from sak.errors import SakError, UsageError
from sak.features import FeatureMaps

torch = pytest.importorskip("torch")
ARRAYS = (ArrayLayout("l1/values", "float16", (4, 8), float("nan")),)


def test_teachers_share_a_job_where_their_blocks_have_one_size():
    layouts = {name: ColumnLayout(ARRAYS, 20, block) for name, block in (("a", 8), ("b", 8), ("c", 16))}
    pending = {"a": {(0, 0), (0, 2)}, "b": {(0, 0)}, "c": {(0, 1)}}
    jobs = make_jobs(pending, layouts, limit=None, elsewhere={})
    assert jobs == (
        Job(0, 0, 0, 8, ("a", "b")),
        Job(0, 1, 16, 20, ("c",)),
        Job(0, 2, 16, 20, ("a",)),
    )


def test_a_limit_cuts_the_last_job_and_samples_elsewhere_are_named():
    layouts = {"a": ColumnLayout(ARRAYS, 20, 8)}
    elsewhere = {"a": {0: np.array([1, 9, 11, 19])}}
    (first, second) = make_jobs({"a": {(0, 0), (0, 1)}}, layouts, limit=11, elsewhere=elsewhere)
    assert (first.samples, first.left_out("a")) == (range(8), {1})
    assert (second.samples, second.left_out("a")) == (range(8, 11), {9})
    assert second.left_out("b") == frozenset()


def test_stages_add_up_and_their_shares_leave_out_waiting_for_a_turn():
    stages = StageSeconds(1, 6, 2, 1, turn=5) + StageSeconds(0, 0, 0, 0, turn=5)
    assert stages.turn == 10
    assert stages.note() == "decode 10 %, forward 60 %, encode 20 %, write 10 %"
    assert StageSeconds().note() == "decode 0 %, forward 0 %, encode 0 %, write 0 %"


def test_the_time_of_a_plan_overlaps_decoding_with_a_gpu_but_not_with_the_cpu():
    plan = ExtractionPlan(
        {"a": SimpleNamespace(samples=100), "b": SimpleNamespace(samples=50)}, (Job(0, 0, 0, 100, ()),), 100
    )
    rates = {"decode": 10.0, "forward": {"a": 10.0, "b": 5.0}}
    assert Speed("cuda", **rates).seconds(plan, 2) == 10
    assert Speed("cpu", **rates).seconds(plan, 2) == 15
    assert Speed().lines(plan, 1, {}) == []


def test_calibration_is_told_beside_the_time_of_the_plan():
    plan = ExtractionPlan(
        {"a": SimpleNamespace(samples=100), "b": SimpleNamespace(samples=50)}, (Job(0, 0, 0, 100, ()),), 100
    )
    speed = Speed("cpu", decode=10.0, forward={"a": 10.0, "b": 5.0})
    assert speed.lines(plan, 1, {"a": 20, "b": 20})[-1] == "Before that, once: calibration on 20 images, about 8 s"
    assert "calibration" not in " ".join(speed.lines(plan, 1, {}))


def test_as_many_bad_images_as_allowed_are_allowed():
    plan = ExtractionPlan({}, (), 1000)
    bad = tuple(Absent(sample, f"k{sample}", "zero bytes") for sample in range(30))
    refuse_bad_data(Tally(plan, bad[:1]), 0.001)
    with pytest.raises(SakError, match=r"30 of 1000 .*k0: zero bytes.*k19.*and 10 more"):
        refuse_bad_data(Tally(plan, bad), 0.029)


class _Small:
    """A teacher whose device holds two images."""

    name = "small"

    def __init__(self, most):
        self.most = most

    def __call__(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return FeatureMaps((1,), (images * 2,))


def test_a_batch_that_does_not_fit_is_forwarded_in_pieces():
    images = torch.rand(7, 3, 2, 2)
    assert torch.equal(forward_in_pieces(_Small(2), images).maps[0], images * 2)
    with pytest.raises(DoesNotFitError, match="small: one image does not fit cpu"):
        forward_in_pieces(_Small(0), images)


def test_sizes_read_well():
    assert [gigabytes(count) for count in (42.5e12, 4.2e9, 300_000)] == ["42.5 TB", "4.2 GB", "0.3 MB"]


@pytest.mark.parametrize("wrong", [{"views": 0}, {"batch_size": 0}, {"limit": 0}, {"max_bad": 1.5}])
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
        ExtractConfig("s", "d", "c", **wrong)
