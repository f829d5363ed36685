"""Boundary evaluation against the published code's arrays and, on real images, its counts."""

import numpy as np
import pytest
from scipy.io import loadmat

from sak.metrics.boundary import ground_truth, suppress
from sak.metrics.boundary.score import THRESHOLDS, BoundaryCounts, count, count_masks, score
from sak.metrics.boundary.thin import thin

CASES = (
    "01_s64_shift_1ann_md0075",
    "03_s64_noisy_1ann_md04",
    "05_s64_emptypred_1ann",
    "06_s64_emptygt_1ann",
    "07_s64_3ann_md04",
    "08_s64_nyud_boundaries_md06",
)


@pytest.fixture(params=CASES)
def case(golden, request):
    return dict(np.load(golden / "edge" / f"{request.param}.npz")) | {"name": request.param}


def counts_of(case) -> BoundaryCounts:
    truths = [truth > 0 for truth in case["gt"]]
    return count(case["pred_u8"], truths, max_distance=float(case["max_dist"]))


def test_smoothing_holds_to_1e_6(case):
    assert np.abs(suppress.smoothed(case["raw_u8"]) - case["nms_E"]).max() <= 1e-6


def test_suppression_moves_at_most_two_percent_of_pixels_by_one_grey_level(case):
    moved = np.abs(suppress.non_maximum_suppression(case["raw_u8"]).astype(int) - case["pred_u8"])
    assert moved.max() <= 1
    assert (moved > 0).mean() <= 0.02


def test_thin_maps_are_equal_bit_for_bit(case):
    ours = [np.packbits(thin(case["pred_u8"] / 255.0 >= threshold)) for threshold in THRESHOLDS]
    assert np.array_equal(ours, case["thin_packed"])


def test_ground_truth_is_equal(case):
    if "labelmap" not in case:
        pytest.skip("this case gives its ground truth alone, no label map")
    make = ground_truth.from_boundary_map if "nyud" in case["name"] else ground_truth.from_label_map
    assert np.array_equal(make(case["labelmap"]), case["gt"][0] > 0)


def test_counts_are_equal(case):
    counts = counts_of(case)
    assert np.array_equal(counts.truth, case["sumR"])
    assert np.array_equal(counts.prediction, case["sumP"])
    assert np.array_equal(counts.matched_truth, case["cntR_maxcard"])
    if len(case["gt"]) == 1:
        assert np.array_equal(counts.matched_prediction, counts.matched_truth)


def test_the_maximum_is_never_below_the_published_matcher(case):
    assert (counts_of(case).matched_truth >= case["cntR_seeds"].max(axis=0)).all()


@pytest.mark.parametrize("protocol", ["seism", "bsds"])
def test_ods_ois_and_ap_are_equal(case, protocol):
    result = score([counts_of(case)], protocol=protocol)
    for name in ("ods", "ois", "ap"):
        assert getattr(result, name) == pytest.approx(float(case[f"{protocol}_{name}_maxcard"]), abs=1e-12)


@pytest.fixture(scope="module")
def bsds(test_data):
    """Our counts and the published benchmark's on the first real images."""
    folder = test_data / "bsds500"
    rows = (folder / "seism_test_order.txt").read_text().split()
    tables = [np.loadtxt(folder / "seism_gPb-UCM_test_fb" / f"test_fb_{t:.2f}.txt") for t in THRESHOLDS]
    ours, published = [], []
    for path in sorted((folder / "ucm2").glob("*.mat"))[:6]:
        probability = loadmat(path)["ucm2"][2::2, 2::2]
        annotators = loadmat(folder / "groundTruth" / path.name)["groundTruth"][0]
        truths = [ground_truth.from_segmentation(one["Segmentation"][0, 0]) for one in annotators]
        ours.append(count_masks([probability > t for t in THRESHOLDS], truths, max_distance=0.0075))
        table = np.array([table[rows.index(path.stem)] for table in tables]).astype(np.int64)
        published.append(BoundaryCounts(*table[:, 3:7].T))
    return ours, published


def test_on_real_images_the_sums_are_the_published_ones_exactly(bsds):
    for ours, published in zip(*bsds, strict=True):
        assert np.array_equal(ours.prediction, published.prediction)
        assert np.array_equal(ours.truth, published.truth)


def test_on_real_images_the_matcher_is_above_the_published_one_by_its_known_shortfall(bsds):
    for ours, published in zip(*bsds, strict=True):
        assert (ours.matched_truth >= published.matched_truth).all()
        shortfall = 1 - published.matched_truth.sum() / ours.matched_truth.sum()
        assert shortfall < 0.0044


def test_on_real_images_ods_is_the_published_one(bsds):
    ours, published = (score(counts) for counts in bsds)
    assert ours.ods == pytest.approx(published.ods, abs=1.5e-3)
    assert ours.ods_threshold == published.ods_threshold
