"""Pixel metrics against slow, obvious numpy versions, and at their edges."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import SakError, UsageError
from sak.metrics.delta_m import delta_m
from sak.metrics.depth import DepthError
from sak.metrics.maxf import THRESHOLDS, MaxF, MaxFPerImage, _levels_above
from sak.metrics.miou import MeanIoU, PartsMeanIoU
from sak.metrics.normals import MeanAngle
from sak.metrics.outputs import pixel_metric, read_output
from sak.tasks import DATASETS, NYUD, PASCAL_CONTEXT

SEEDS = st.integers(0, 10_000)


def _images(seed, count=4):
    """Sizes of `count` images and the generator to fill them from."""
    random = np.random.default_rng(seed)
    return [tuple(random.integers(1, 9, 2)) for _ in range(count)], random


def _with_ignored(label, random, share=0.2):
    return np.where(random.random(label.shape) < share, 255, label)


def _classes(seed, classes=5):
    sizes, random = _images(seed)
    return [
        (random.integers(0, classes, size), _with_ignored(random.integers(0, classes, size), random)) for size in sizes
    ]


def _saliency(seed):
    sizes, random = _images(seed)
    grey = [random.integers(0, 41, size) / 40 for size in sizes]  # many on a threshold
    return [(p.astype(np.float32), _with_ignored(random.integers(0, 2, p.shape), random)) for p in grey]


def _normals(seed):
    sizes, random = _images(seed)
    pairs = []
    for size in sizes:
        label = random.normal(size=(3, *size))
        label[random.integers(0, 3), random.random(size) < 0.2] = 255
        pairs.append((random.normal(size=(3, *size)).astype(np.float32), label))
    return pairs


def _depths(seed):
    sizes, random = _images(seed)
    return [(random.normal(5, 5, size), random.uniform(-1, 9, size) * random.choice([1, 10], size)) for size in sizes]


def _fed(metric, pairs):
    for prediction, label in pairs:
        metric.update(torch.from_numpy(prediction), torch.from_numpy(label))
    return metric


def _joined(pairs, axis=None):
    """All pixels of all images: predictions and labels, flat or (3, N)."""
    shape = (-1,) if axis is None else (3, -1)
    return tuple(np.concatenate([side.reshape(shape) for side in sides], -1) for sides in zip(*pairs, strict=True))


def _same(value):
    return pytest.approx(value, rel=1e-12, abs=1e-12, nan_ok=True)


@given(SEEDS)
def test_miou_is_the_obvious_one(seed):
    pairs = _classes(seed)
    prediction, label = _joined(pairs)
    prediction, label = prediction[label != 255], label[label != 255]
    scores = []
    for number in range(5):
        union = ((prediction == number) | (label == number)).sum()
        scores.append(100 * ((prediction == number) & (label == number)).sum() / union if union else math.nan)
    absent = [number for number in range(5) if math.isnan(scores[number])]
    result = _fed(MeanIoU(5), pairs).result()
    assert list(result.per_class) == _same(scores)
    assert list(result.absent) == absent
    assert result.pixels == len(label)
    if len(label):
        assert result.value == result.value_all == _same(np.nansum(scores) / 5)
        assert result.value_present == _same(np.nanmean(scores))
        assert result.accuracy == _same(100 * (prediction == label).mean())


@given(SEEDS)
def test_parts_leave_out_images_without_a_person(seed):
    pairs = [(p, np.where(label != 255, 0, 255) if k % 2 else label) for k, (p, label) in enumerate(_classes(seed))]
    kept = [(p, label) for p, label in pairs if set(np.unique(label)) - {0, 255}]
    found = _fed(PartsMeanIoU(5), pairs)
    assert torch.equal(found.state["confusion"], _fed(MeanIoU(5), kept).state["confusion"])
    batch = PartsMeanIoU(5)
    batch.update(torch.tensor([[[1, 2]], [[1, 1]]]), torch.tensor([[[0, 255]], [[0, 1]]]))
    assert batch.result().pixels == 2


@given(SEEDS)
def test_maxf_is_the_obvious_one(seed):
    pairs = _saliency(seed)
    prediction, label = _joined(pairs)
    prediction, label = prediction[label != 255], label[label != 255]
    best = 0.0
    for threshold in (np.float32(k / 20) for k in range(1, 20)):
        above = prediction >= threshold
        tp = (above & (label == 1)).sum()
        precision, recall = tp / max(above.sum(), 1), tp / max((label == 1).sum(), 1)
        best = max(best, 1.3 * precision * recall / (0.3 * precision + recall) if tp else 0.0)
    result = _fed(MaxF(), pairs).result()
    assert result.value == _same(100 * best if len(label) else math.nan)
    assert result.images == sum((label != 255).any() for _, label in pairs)


@given(SEEDS)
def test_maxf_by_image_is_the_obvious_one(seed):
    curves = []
    for prediction, label in (pairs := _saliency(seed)):
        p, positive = prediction[label != 255].astype(np.float64), label[label != 255] == 1
        if not len(p):
            continue
        p = (p - p.min()) / (p.max() - p.min()) if p.max() > p.min() else p
        grey, curve = np.floor(255 * p + 1e-4), []
        for level in range(256):
            tp = (positive & (grey >= level)).sum()
            precision, recall = tp / max((grey >= level).sum(), 1), tp / max(positive.sum(), 1)
            curve.append(1.3 * precision * recall / (0.3 * precision + recall) if tp else 0.0)
        curves.append(curve)
    result = _fed(MaxFPerImage(), pairs).result()
    assert result.images == len(curves)
    assert result.value == _same(100 * np.mean(curves, 0).max() if curves else math.nan)


@given(SEEDS)
def test_angles_are_the_obvious_ones(seed):
    pairs = _normals(seed)
    prediction, label = _joined(pairs, axis=3)
    valid = (label != 255).all(0)
    first, second = prediction[:, valid].astype(np.float64), label[:, valid]
    first, second = first / np.linalg.norm(first, axis=0), second / np.linalg.norm(second, axis=0)
    angles = np.degrees(np.arccos(np.clip((first * second).sum(0), -1, 1)))
    result = _fed(MeanAngle(), pairs).result()
    assert result.pixels == valid.sum()
    if valid.any():
        assert result.value == pytest.approx(angles.mean(), abs=1e-6)
        assert result.median == pytest.approx(np.median(angles), abs=5.1e-5)
        assert result.rmse == pytest.approx(np.sqrt((angles**2).mean()), abs=1e-6)
        assert list(result.under) == _same([100 * (angles < limit).mean() for limit in (11.25, 22.5, 30)])


@given(SEEDS)
def test_depth_errors_are_the_obvious_ones(seed):
    pairs = _depths(seed)
    prediction, label = _joined(pairs)
    valid = (label > 0) & (label < 80)
    p, d = np.maximum(prediction[valid], 0), label[valid]
    result = _fed(DepthError(), pairs).result()
    assert result.pixels == valid.sum()
    if valid.any():
        with np.errstate(divide="ignore"):
            close = np.maximum(p / d, d / p) < 1.25
        expected = [np.sqrt(((p - d) ** 2).mean()), (abs(p - d) / d).mean(), 100 * close.mean()]
        assert [result.value, result.abs_rel, result.within_125] == _same(expected)


METRICS = {
    "miou": (lambda: MeanIoU(5), _classes),
    "parts": (lambda: PartsMeanIoU(5), _classes),
    "maxf": (MaxF, _saliency),
    "maxfm": (MaxFPerImage, _saliency),
    "normals": (MeanAngle, _normals),
    "depth": (DepthError, _depths),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_the_images_find_the_same(name, processes):
    make, draw = METRICS[name]
    pairs = [pair for seed in range(5) for pair in draw(seed)]
    alone = _fed(make(), pairs)
    parts = [_fed(make(), pairs[rank::processes]) for rank in range(processes)]
    for part in parts[1:]:
        parts[0].merge(part)
    for key, value in alone.state.items():
        merged = parts[0].state[key]
        assert (
            torch.equal(merged, value) if not value.is_floating_point() else torch.allclose(merged, value, rtol=1e-13)
        )
    assert parts[0].result().value == _same(alone.result().value)


@pytest.mark.parametrize("name", METRICS)
def test_without_a_valid_pixel_the_score_is_not_a_number_and_says_so(name):
    make, draw = METRICS[name]
    blank = [(prediction, np.full(label.shape, 255.0)) for prediction, label in draw(0)]
    for metric in (make(), _fed(make(), blank)):
        result = metric.result()
        assert math.isnan(result.value)
        assert (result.images if hasattr(result, "images") else result.pixels) == 0
    whole = _fed(make(), draw(1))
    before = whole.result()
    _fed(whole, blank)
    assert repr(whole.result()) == repr(before)


@pytest.mark.parametrize("name", METRICS)
def test_a_state_can_be_saved_and_taken_over(name):
    make, draw = METRICS[name]
    metric, other = _fed(make(), draw(3)), make()
    other.load_state({key: value.clone() for key, value in metric.state.items()})
    assert repr(other.result()) == repr(metric.result())
    with pytest.raises(ValueError, match="not a state of"):
        other.load_state({"nothing": torch.zeros(1)})


@pytest.mark.parametrize("name", METRICS)
def test_counts_are_whole_and_sums_double(name):
    assert {value.dtype for value in METRICS[name][0]().state.values()} <= {torch.int64, torch.float64}


def test_counts_beyond_two_to_the_24_stay_exact():
    metric = MeanIoU(2)
    metric.state["confusion"][0, 0] = 2**53
    metric.update(torch.zeros(1, 1), torch.zeros(1, 1))
    assert int(metric.state["confusion"][0, 0]) == 2**53 + 1
    assert metric.result().pixels == 2**53 + 1


def test_both_conventions_for_absent_classes_are_told():
    pair = (torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    zero, skip = MeanIoU(4), MeanIoU(4, absent="skip")
    zero.update(*pair)
    skip.update(*pair)
    assert zero.result().value == zero.result().value_all == skip.result().value_all == _same(25)
    assert skip.result().value == zero.result().value_present == _same(50)
    assert zero.result().absent == (2, 3)
    assert (zero.result().absent_as, skip.result().absent_as) == ("zero", "skip")


def test_a_probability_on_a_threshold_counts_as_salient():
    metric = MaxF()
    metric.update(THRESHOLDS[None], torch.ones(1, 19))
    assert metric.state["predicted"].tolist() == list(range(19, 0, -1))


def test_thresholds_are_told_from_their_neighbours_in_every_precision():
    steps = THRESHOLDS.view(torch.int32)
    beside = torch.cat([(steps + move).view(torch.float32) for move in (-2, -1, 0, 1, 2)])
    extremes = torch.tensor([0.0, -0.0, 1.0, 0.9999999, 0.99, -3.0, 7.0, 1e-45, 3e38, -3e38])
    for values in (beside, extremes, torch.linspace(0, 1, 100_003), beside.double() + 1e-12, torch.rand(999).half()):
        wide = values if values.dtype == torch.float64 else values.float()
        assert torch.equal(_levels_above(values).long(), (wide[:, None] >= THRESHOLDS.to(wide)).sum(1))


def test_half_precision_is_compared_in_float32():
    metric = MaxF()
    metric.update(torch.full((1, 1), 0.3, dtype=torch.bfloat16), torch.ones(1, 1))  # 0.30078125
    assert int((metric.state["predicted"] > 0).sum()) == 6


def test_opposite_equal_and_zero_normals():
    label = torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1).expand(3, 1, 3)
    prediction = torch.tensor([[0.0, 0, 0], [0, 0, 0], [5, -2, 0]]).reshape(3, 1, 3)
    result = _fed(MeanAngle(), [(prediction.numpy(), label.numpy())]).result()
    assert result.value == pytest.approx((0 + 180 + 90) / 3)
    assert result.median == pytest.approx(90, abs=5.1e-5)


def test_a_median_between_two_values_is_their_mean():
    radians = torch.tensor([10.0, 20.0]).deg2rad()
    prediction = torch.stack([radians.sin(), torch.zeros(2), radians.cos()])[:, None]
    label = torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1).expand(3, 1, 2)
    metric = MeanAngle()
    metric.update(prediction, label)
    assert metric.result().median == pytest.approx(15, abs=1e-4)


def test_the_tables_metrics_take_what_heads_put_out():
    for rows in DATASETS.values():
        for task in rows:
            output = torch.randn(2, task.channels, 4, 5, dtype=torch.bfloat16)
            prediction, metric = read_output(task, output), pixel_metric(task)
            assert prediction.shape == ((2, 3, 4, 5) if task.name == "normals" else (2, 4, 5))
            if metric is None:
                assert task.name == "edge"
                assert 0 <= prediction.min() <= prediction.max() <= 1
                continue
            metric.update(prediction, torch.ones(prediction.shape))
            assert math.isfinite(metric.result().value)
    assert isinstance(pixel_metric(PASCAL_CONTEXT["human_parts"]), PartsMeanIoU)
    assert read_output(PASCAL_CONTEXT["sal"], torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)).item() == pytest.approx(
        0.7311, abs=1e-4
    )


def test_maps_of_no_pixels_and_of_one_are_counted():
    for make in (lambda: MeanIoU(3), lambda: PartsMeanIoU(3), MaxF, MaxFPerImage, DepthError):
        metric = make()
        metric.update(torch.ones(1, 1), torch.ones(1, 1))
        assert metric.result().value >= 0
    metric = MeanAngle()
    metric.update(torch.ones(3, 1, 1), torch.ones(3, 1, 1))
    metric.update(torch.ones(3, 0, 4), torch.ones(3, 0, 4))
    assert (metric.result().value, metric.result().pixels) == (pytest.approx(0, abs=1e-6), 1)


@given(SEEDS)
def test_reading_outputs_is_the_obvious_thing(seed):
    random = np.random.default_rng(seed)
    output = torch.from_numpy(random.integers(-3, 4, (2, 21, 4, 5)).astype(np.float32))  # with ties: the first wins
    assert torch.equal(read_output(PASCAL_CONTEXT["semseg"], output), output.argmax(1))
    normals = torch.from_numpy(random.normal(size=(2, 3, 4, 5)).astype(np.float32))
    torch.testing.assert_close(
        read_output(PASCAL_CONTEXT["normals"], normals), torch.nn.functional.normalize(normals, dim=1)
    )


def test_gradients_do_not_reach_into_a_metric():
    metric, prediction = DepthError(), torch.ones(2, 2, requires_grad=True)
    metric.update(prediction, torch.ones(2, 2))
    assert not metric.state["squares"].requires_grad


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(SakError, match=r"MeanIoU: the prediction is \(2, 3\) and the label \(3, 2\)"):
        MeanIoU(3).update(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(SakError, match=r"a label \(255 apart\) holds class 7, but there are 3, 0 to 2"):
        MeanIoU(3).update(torch.zeros(1, 2), torch.tensor([[255, 7]]))
    with pytest.raises(SakError, match="a prediction holds class 3"):
        MeanIoU(3).update(torch.tensor([[3, 255]]), torch.tensor([[2, 255]]))
    with pytest.raises(SakError, match=r"a saliency label .* holds class 0\.5"):
        MaxF().update(torch.zeros(1, 1), torch.full((1, 1), 0.5))
    with pytest.raises(SakError, match="holds class -1"):
        MeanIoU(3).update(torch.zeros(1, 2), torch.tensor([[0, -1]]))
    for wrong in (254.5, 300.0, math.nan, 256.0):
        with pytest.raises(SakError, match="a label"):
            MeanIoU(3).update(torch.zeros(1, 1), torch.tensor([[wrong]]))
    with pytest.raises(SakError, match="holds class 3"):  # not taken for the class of ignored pixels
        MeanIoU(3).update(torch.zeros(1, 1), torch.tensor([[3]]))
    with pytest.raises(ValueError, match="1 to 255 classes"):
        MeanIoU(256)
    with pytest.raises(SakError, match="MeanAngle: a label holds values that are not finite"):
        MeanAngle().update(torch.ones(3, 1, 1), torch.full((3, 1, 1), math.nan))
    for task in ("semseg", "human_parts"):
        with pytest.raises(SakError, match="predicts no class"):
            read_output(PASCAL_CONTEXT[task], torch.full((1, PASCAL_CONTEXT[task].channels, 2, 2), math.nan))
    with pytest.raises(SakError, match="DepthError: the prediction holds values that are not finite"):
        DepthError().update(torch.full((1, 1), math.nan), torch.ones(1, 1))
    with pytest.raises(ValueError, match="cannot merge DepthError into MaxF"):
        MaxF().merge(DepthError())
    with pytest.raises(ValueError, match=r"\(H, W\) or \(B, H, W\)"):
        MaxF().update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


def test_a_gain_needs_every_task_and_a_baseline():
    scores = {"semseg": 50.0, "depth": 0.5, "normals": 18.0, "edge": 77.0}
    assert delta_m(NYUD, scores, scores).value == 0
    better = delta_m(NYUD, {**scores, "depth": 0.4}, scores)
    assert better.per_task["depth"] == pytest.approx(20)
    assert better.value == pytest.approx(5)
    with pytest.raises(UsageError, match="nyud: no score for edge"):
        delta_m(NYUD, {**scores, "edge": math.nan}, scores)
    with pytest.raises(UsageError, match="nyud: no baseline for semseg"):
        delta_m(NYUD, scores, {})
    with pytest.raises(UsageError, match="baseline of depth is 0"):
        delta_m(NYUD, scores, {**scores, "depth": 0.0})
    with pytest.raises(UsageError, match="no tasks"):
        delta_m(NYUD.select([]), scores, scores)


WORKER = """
import sys, torch, torch.distributed as dist
from sak.metrics.normals import MeanAngle
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=3)
torch.manual_seed(0)
pairs = torch.randn(7, 2, 3, 5, 6)
mine, whole = MeanAngle(), MeanAngle()
for prediction, label in pairs[rank::3]: mine.update(prediction, label)
for prediction, label in pairs: whole.update(prediction, label)
mine.reduce_(dist.all_reduce)
for name, value in whole.state.items(): torch.testing.assert_close(mine.state[name], value, rtol=1e-13, atol=0)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_three_real_processes_sum_to_the_whole(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", WORKER, str(rank), str(tmp_path / "store")])
        for rank in range(3)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
