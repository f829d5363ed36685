"""Boundary F-measure (odsF, OIS, AP) by the SEISM protocol over the BSDS matching, without MATLAB.

Boundaries of label maps, counts of one image, their sum over a data set and its numbers; `boundary_thinning` (with
non-maximum suppression) and `boundary_matching` are its steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from sak.metrics.boundary_matching import Reach, match
from sak.metrics.boundary_thinning import thin


def segments_to_boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) labels -> (H, W) bool: a pixel is boundary where its E, S or SE neighbour has another label.

    The last row tests E alone, the last column S alone, the corner is never boundary.
    """
    boundary = np.zeros(labels.shape, bool)
    boundary[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    boundary[:-1] |= labels[:-1] != labels[1:]
    boundary[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return boundary


def from_label_map(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """PASCAL-Context: the LabelMap split into 4-connected components of every label, their boundaries thinned."""
    return thin(segments_to_boundary(label(labels, connectivity=1, background=-1)))


def from_segmentation(segments: NDArray[Any]) -> NDArray[np.bool_]:
    """BSDS: one annotator's segmentation, its boundaries thinned."""
    return thin(segments_to_boundary(segments))


def from_boundary_map(boundaries: NDArray[Any]) -> NDArray[np.bool_]:
    """NYUD-v2: the file is a boundary map already, so the protocol doubles its lines, then thins them again."""
    return thin(segments_to_boundary(boundaries != 0))


Protocol = Literal["seism", "bsds"]

THRESHOLDS = np.arange(1, 100) / 100
MAX_DISTANCE = {"pascal-context": 0.0075, "bsds": 0.0075, "nyud": 0.011}


@dataclass(frozen=True)
class BoundaryCounts:
    """Exact counts of one image or of many, int64 (T,) each, by threshold.

    `matched_truth` of `truth` ground-truth pixels (summed over annotators) and `matched_prediction` of `prediction`
    thinned predicted pixels found a partner.
    """

    matched_truth: NDArray[np.int64]
    truth: NDArray[np.int64]
    matched_prediction: NDArray[np.int64]
    prediction: NDArray[np.int64]

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        """Counts of both."""
        return BoundaryCounts(*map(add, vars(self).values(), vars(other).values()))

    def __getitem__(self, index: int) -> "BoundaryCounts":
        """The counts at one threshold, arrays of length 1."""
        return BoundaryCounts(*(array[index : index + 1] for array in vars(self).values()))


@dataclass(frozen=True)
class Curve:
    """Precision and recall by threshold, float64 (T,)."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def f_measure(self) -> NDArray[np.float64]:
        """2PR / (P + R); 0 where both are 0."""
        total = self.precision + self.recall
        return np.where(total > 0, 2 * self.precision * self.recall / np.where(total > 0, total, 1), 0.0)


def curve(counts: BoundaryCounts, *, protocol: Protocol = "seism") -> Curve:
    """Precision and recall of counts.

    Where a sum is empty the protocols differ. `seism`: nothing predicted is P 1, R 0; no ground truth to what was
    predicted is R 1. `bsds`: any ratio over nothing is 0.
    """
    if protocol == "bsds":
        nothing = np.zeros(counts.truth.shape)
        return Curve(
            _ratio(counts.matched_prediction, counts.prediction, nothing),
            _ratio(counts.matched_truth, counts.truth, nothing),
        )
    predicted = (counts.prediction > 0).astype(np.float64)
    return Curve(
        _ratio(counts.matched_prediction, counts.prediction, 1 - predicted),
        _ratio(counts.matched_truth, counts.truth, predicted),
    )


@dataclass(frozen=True)
class BoundaryScore:
    """The data set's numbers; F, precision and recall as fractions, the threshold that ODS was found at."""

    ods: float
    ods_precision: float
    ods_recall: float
    ods_threshold: float
    ois: float
    ap: float
    images: int


def count(
    prediction: NDArray[np.uint8],
    truths: Sequence[NDArray[np.bool_]],
    *,
    max_distance: float,
    thresholds: NDArray[np.float64] = THRESHOLDS,
) -> BoundaryCounts:
    """Counts of one image: (H, W) uint8 prediction after suppression against thin ground truths of its annotators.

    `max_distance` is a fraction of the image's diagonal. A threshold t selects u8 / 255.0 >= t, in float64.
    """
    if prediction.dtype != np.uint8 or prediction.ndim != 2:
        raise ValueError(f"a prediction is (H, W) uint8, got {prediction.shape} {prediction.dtype}")
    selected_from = np.searchsorted(np.arange(256) / 255.0, thresholds, side="left")
    masks = (prediction >= grey for grey in selected_from)
    return count_masks(masks, truths, max_distance=max_distance, same_as_before=_repeats(prediction, selected_from))


def count_masks(
    masks: Iterable[NDArray[np.bool_]],
    truths: Sequence[NDArray[np.bool_]],
    *,
    max_distance: float,
    same_as_before: Sequence[bool] | None = None,
) -> BoundaryCounts:
    """Counts of one image by binary predictions, one a threshold, each thinned here; for predictions not in uint8."""
    total_truth = sum(int(truth.sum()) for truth in truths)
    reaches = [Reach.of(truth, max_distance * float(np.hypot(*truth.shape))) for truth in truths]
    rows: list[tuple[int, int, int]] = []
    for number, mask in enumerate(masks):
        if same_as_before is not None and same_as_before[number]:
            rows.append(rows[-1])
        else:
            rows.append(_count_mask(thin(mask), reaches))
    columns = np.array(rows, np.int64).reshape(len(rows), 3)
    truth = np.full(len(rows), total_truth, np.int64)
    return BoundaryCounts(columns[:, 0], truth, columns[:, 1], columns[:, 2])


def _repeats(prediction: NDArray[np.uint8], selected_from: NDArray[np.int64]) -> list[bool]:
    """Where a threshold selects the very pixels that the one before it did."""
    histogram = np.bincount(prediction.ravel(), minlength=257)
    below = np.concatenate([[0], np.cumsum(histogram)])
    selected = below[selected_from]
    return [False, *(selected[1:] == selected[:-1])]


def _count_mask(mask: NDArray[np.bool_], reaches: Sequence[Reach]) -> tuple[int, int, int]:
    hit = np.zeros(mask.shape, bool)
    matched_truth = 0
    for reach in reaches:
        matching = match(mask, reach)
        matched_truth += matching.size
        hit |= matching.prediction
    return matched_truth, int(hit.sum()), int(mask.sum())


def score(
    images: Sequence[BoundaryCounts],
    *,
    thresholds: NDArray[np.float64] = THRESHOLDS,
    protocol: Protocol = "seism",
) -> BoundaryScore:
    """ODS, OIS and AP over images.

    ODS is the largest F of the summed counts: at the thresholds themselves (`seism`) or also between them (`bsds`,
    linear in P and R). OIS sums each image's counts at its own best threshold.
    """
    if not images:
        raise ValueError("no images to score")
    total = sum(images[1:], start=images[0])
    own_best = [image[int(np.argmax(curve(image, protocol=protocol).f_measure))] for image in images]
    ois = curve(sum(own_best[1:], start=own_best[0]), protocol=protocol)
    over_all = curve(total, protocol=protocol)
    best, threshold = _best(over_all, thresholds, between=protocol == "bsds")
    return BoundaryScore(
        ods=float(best.f_measure[0]),
        ods_precision=float(best.precision[0]),
        ods_recall=float(best.recall[0]),
        ods_threshold=threshold,
        ois=float(ois.f_measure[0]),
        ap=average_precision(over_all),
        images=len(images),
    )


def _best(points: Curve, thresholds: NDArray[np.float64], *, between: bool) -> tuple[Curve, float]:
    """The point of largest F as a curve of length 1, and its threshold; `between` takes 100 steps a threshold."""
    if between:
        knots = np.arange(len(thresholds))
        steps = np.linspace(0, len(thresholds) - 1, 100 * (len(thresholds) - 1) + 1)
        points = Curve(np.interp(steps, knots, points.precision), np.interp(steps, knots, points.recall))
        thresholds = np.interp(steps, knots, thresholds)
    best = int(np.argmax(points.f_measure))
    return Curve(points.precision[best : best + 1], points.recall[best : best + 1]), float(thresholds[best])


def average_precision(points: Curve) -> float:
    """P at R = 0, 0.01 .. 1, interpolated over unique R (first threshold of equal R; 0 outside), summed / 100.

    A curve of one recall value has no area.
    """
    recall, first = np.unique(points.recall, return_index=True)
    if recall.size < 2:
        return 0.0
    grid = np.arange(101) / 100
    return float(np.interp(grid, recall, points.precision[first], left=0.0, right=0.0).sum() / 100)


def _ratio(part: NDArray[np.int64], total: NDArray[np.int64], where_empty: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(total > 0, part / np.maximum(total, 1), where_empty)
