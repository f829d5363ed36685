"""Boundary evaluation: matching, thinning and scores on small cases with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.morphology import thin as reference_thin

from sak.metrics import boundary as ground_truth
from sak.metrics import boundary_thinning as suppress
from sak.metrics.boundary import BoundaryCounts, count, score
from sak.metrics.boundary_matching import Matching, Reach, offsets_within
from sak.metrics.boundary_matching import match as match_in_reach
from sak.metrics.boundary_thinning import thin


def masks(seed: int, density: float, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((size, size)) < density


def match(prediction: np.ndarray, truth: np.ndarray, radius: float) -> Matching:
    return match_in_reach(prediction, Reach.of(truth, radius))


@given(seed=st.integers(0, 10**6), density=st.floats(0.05, 0.95))
def test_thinning_equals_skimage(seed, density):
    mask = masks(seed, density, 40)
    assert np.array_equal(thin(mask), reference_thin(mask))


@given(seed=st.integers(0, 10**6), density=st.floats(0.02, 0.5), radius=st.floats(0, 4))
def test_matching_has_maximum_cardinality(seed, density, radius):
    prediction, truth = masks(seed, density), masks(seed + 1, density)
    ours = match(prediction, truth, radius)
    left, right = np.argwhere(prediction), np.argwhere(truth)
    near = ((left[:, None] - right[None]) ** 2).sum(-1) <= radius**2
    expected = (maximum_bipartite_matching(csr_array(near.astype(int))) >= 0).sum() if near.size else 0
    assert ours.size == expected == ours.truth.sum()


@given(seed=st.integers(0, 10**6), radius=st.floats(0, 3))
def test_matched_pixels_are_pixels_of_their_maps(seed, radius):
    prediction, truth = masks(seed, 0.2), masks(seed + 1, 0.2)
    ours = match(prediction, truth, radius)
    assert not (ours.prediction & ~prediction).any()
    assert not (ours.truth & ~truth).any()


def test_offsets_are_within_the_radius_and_nearest_first():
    offsets = offsets_within(2.0)
    squared = (offsets**2).sum(1)
    assert len(offsets) == 13
    assert squared.max() == 4
    assert (np.diff(squared) >= 0).all()


def test_a_line_shifted_within_reach_matches_whole_and_beyond_it_not_at_all():
    truth = np.zeros((32, 32), bool)
    truth[10, 4:28] = True
    assert match(np.roll(truth, 2, axis=0), truth, 2.0).size == 24
    assert match(np.roll(truth, 3, axis=0), truth, 2.0).size == 0


def test_boundary_tests_the_last_row_eastwards_and_the_last_column_southwards():
    labels = np.array([[1, 1, 1], [1, 1, 2], [1, 2, 2]])
    expected = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    assert np.array_equal(ground_truth.segments_to_boundary(labels), expected)


def test_equal_labels_that_do_not_touch_are_different_segments():
    labels = np.zeros((8, 8), int)
    labels[2:4, 2:4] = labels[4:6, 4:6] = 5  # touching by a corner only
    assert ground_truth.from_label_map(labels).any()


def test_perfect_prediction_scores_one():
    truth = ground_truth.from_segmentation(np.repeat(np.arange(4), 8)[None].repeat(32, 0))
    counts = count((truth * 255).astype(np.uint8), [truth], max_distance=0.0075)
    result = score([counts])
    assert (result.ods, result.ois) == (1.0, 1.0)


def test_counts_of_a_data_set_are_the_sum_over_images():
    truth = masks(0, 0.1)
    counts = count(np.random.default_rng(1).integers(0, 256, truth.shape, np.uint8), [thin(truth)], max_distance=0.05)
    both = counts + counts
    assert np.array_equal(both.matched_truth, 2 * counts.matched_truth)
    assert score([counts, counts]).ods == pytest.approx(score([counts]).ods)


def test_ois_is_at_least_ods_where_images_want_different_thresholds():
    def image(best: int) -> BoundaryCounts:
        matched = np.array([10 if k == best else 1 for k in range(99)])
        return BoundaryCounts(matched, np.full(99, 10), matched, np.full(99, 10))

    result = score([image(3), image(90)])
    assert result.ois == 1.0
    assert result.ods == pytest.approx(0.55)


def test_a_threshold_selects_by_float64_comparison():
    prediction = np.full((16, 16), 51, np.uint8)  # 51 / 255 == 0.2 exactly
    counts = count(prediction, [np.ones((16, 16), bool)], max_distance=0.1)
    assert counts.prediction[19] > 0
    assert counts.prediction[20] == 0


def test_suppression_keeps_a_ridge_and_drops_its_sides():
    image = np.zeros((32, 32), np.uint8)
    image[:, 15:18] = (120, 240, 120)
    kept = suppress.non_maximum_suppression(image)
    assert (kept[8:24, 16] > 0).all()
    assert (kept[8:24, 14] == 0).all()
    assert (kept[:, 0] == 0).all()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)])
def test_a_wrong_prediction_is_named(bad):
    with pytest.raises(ValueError, match="uint8, got"):
        count(bad, [], max_distance=0.01)
    with pytest.raises(ValueError, match="uint8, got"):
        suppress.non_maximum_suppression(bad)


def test_maps_of_different_size_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        match(np.zeros((3, 4), bool), np.zeros((4, 3), bool), 1.0)
