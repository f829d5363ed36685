"""Boundary evaluation against the published code's arrays and, on real images, its counts."""

import numpy as np
import pytest
from scipy.io import loadmat

from sak.metrics import boundary as ground_truth
from sak.metrics import boundary_thinning as suppress
from sak.metrics.boundary import THRESHOLDS, BoundaryCounts, count, count_masks, score
from sak.metrics.boundary_thinning import thin

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


def gpb_ucm(folder, name, rows, tables) -> tuple[BoundaryCounts, BoundaryCounts]:
    """Our counts and the published benchmark's of one real image."""
    probability = loadmat(folder / f"ucm2/{name}.mat")["ucm2"][2::2, 2::2]
    annotators = loadmat(folder / f"groundTruth/{name}.mat")["groundTruth"][0]
    truths = [ground_truth.from_segmentation(one["Segmentation"][0, 0]) for one in annotators]
    ours = count_masks([probability > t for t in THRESHOLDS], truths, max_distance=0.0075)
    _check_image(ours, published := _published(tables, rows.index(name)), annotators=len(truths))
    return ours, published


def _published(tables, row) -> BoundaryCounts:
    return BoundaryCounts(*np.array([table[row] for table in tables]).astype(np.int64)[:, 3:7].T)


def _check_image(ours, published, *, annotators):
    assert np.array_equal(ours.prediction, published.prediction)
    assert np.array_equal(ours.truth, published.truth)
    above = ours.matched_truth - published.matched_truth
    assert (above >= 0).all()
    assert (above <= np.maximum(0.005 * published.matched_truth, 3 * annotators)).all()


def _check_data_set(pairs):
    ours, published = (score(counts) for counts in zip(*pairs, strict=True))
    assert 0 <= ours.ods - published.ods < 1.5e-3
    assert ours.ods_threshold == published.ods_threshold
    for protocol in ("seism", "bsds"):
        sides = (score(counts, protocol=protocol) for counts in zip(*pairs, strict=True))
        print(protocol, *(f"ODS {side.ods:.4f} OIS {side.ois:.4f} AP {side.ap:.4f}" for side in sides))  # noqa: T201


@pytest.fixture(scope="module")
def published_tables(test_data):
    folder = test_data / "bsds500"
    names = sorted(path.stem for path in (folder / "ucm2").glob("*.mat"))
    rows = (folder / "seism_test_order.txt").read_text().split()
    return names, rows, [np.loadtxt(folder / f"seism_gPb-UCM_test_fb/test_fb_{t:.2f}.txt") for t in THRESHOLDS]


def test_on_three_real_images_counts_are_the_published_ones_and_the_matchers_known_shortfall(
    test_data, published_tables
):
    names, rows, tables = published_tables
    _check_data_set([gpb_ucm(test_data / "bsds500", name, rows, tables) for name in names[:3]])


@pytest.mark.slow
def test_on_all_thirty_real_images_counts_are_the_published_ones_and_the_matchers_known_shortfall(
    test_data, published_tables
):
    names, rows, tables = published_tables
    assert len(names) == 30
    _check_data_set([gpb_ucm(test_data / "bsds500", name, rows, tables) for name in names])
