"""Pixel metrics against the published implementation's numbers, and published saliency scores."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sak.metrics.delta_m import delta_m, gain
from sak.metrics.depth import DepthError
from sak.metrics.maxf import MaxF, MaxFPerImage
from sak.metrics.miou import MeanIoU
from sak.metrics.normals import MeanAngle
from sak.tasks import Dataset, Task


@pytest.fixture
def arrays(golden):
    def load(name):
        with np.load(golden / f"metrics/{name}.npz") as stored:
            return {key: stored[key] for key in stored}

    return load


def _tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def test_miou(arrays):
    told = arrays("semseg_pascal21")
    metric = MeanIoU(int(told["n_classes"]))
    for prediction, label in zip(_tensor(told["pred"]), _tensor(told["gt"]), strict=True):
        metric.update(prediction, label)
    confusion = metric.state["confusion"]
    tp = confusion.diagonal()
    assert tp.tolist() == told["tp"].tolist()
    assert (confusion.sum(0) - tp).tolist() == told["fp"].tolist()
    assert (confusion.sum(1) - tp).tolist() == told["fn"].tolist()
    result = metric.result()
    assert result.per_class == pytest.approx((100 * told["iou_per_class"]).tolist(), rel=1e-12)
    assert result.value == pytest.approx(float(told["mIoU"]), rel=1e-12)
    assert result.value_present == pytest.approx(float(told["mIoU_present_only"]), rel=1e-12)
    assert result.absent == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maxf(arrays, dtype):
    told = arrays("sal_float")
    metric = MaxF()
    predictions = _tensor(told["pred_0_255"]) / 255
    metric.update(predictions.to(dtype), _tensor(told["gt"]))
    result = metric.result()
    assert metric.state["tp"].tolist() == told["tp"].tolist()
    assert metric.state["predicted"].tolist() == told["pred_pos"].tolist()
    assert [int(metric.state["positives"])] * 19 == told["act_pos"].tolist()
    assert result.value == pytest.approx(float(told["maxF"]), abs=1e-4)
    assert result.f == pytest.approx((100 * told["fbeta"]).tolist(), abs=1e-4)
    assert result.precision == pytest.approx((100 * told["precision"]).tolist(), abs=1e-4)
    assert result.recall == pytest.approx((100 * told["recall"]).tolist(), abs=1e-4)
    assert result.iou == pytest.approx(float(told["mIoU"]), abs=1e-4)
    assert (metric.state["iou"] / 3).tolist() == pytest.approx(told["iou_per_image"].mean(0).tolist(), abs=1e-6)
    assert result.threshold == pytest.approx(0.55)


def test_normals(arrays):
    told = arrays("normals")
    metric = MeanAngle()
    for prediction, label in zip(told["pred_0_255_hwc"], told["gt_chw"], strict=True):
        metric.update(_tensor(2 * prediction / 255 - 1).permute(2, 0, 1), _tensor(label))
    result = metric.result()
    assert result.pixels == int(told["n"]) == int(told["valid"].sum())
    assert result.value == pytest.approx(float(told["mErr"]), abs=1e-4)
    assert result.median == pytest.approx(float(told["median"]), abs=1e-4)
    assert result.rmse == pytest.approx(float(told["rmse"]), abs=1e-4)
    expected = [float(told[name]) for name in ("pct_11_25", "pct_22_5", "pct_30")]
    assert result.under == pytest.approx(expected, abs=1e-9)


def test_depth(arrays):
    told = arrays("depth")
    metric = DepthError()
    for prediction, label in zip(_tensor(told["pred"]), _tensor(told["gt"]), strict=True):
        metric.update(prediction[None], label)
    result = metric.result()
    assert result.pixels == int(told["n_valid"]) == int(told["valid"].sum())
    assert result.value == pytest.approx(float(told["RMSE"]), abs=1e-6)
    assert float(metric.state["squares"]) == pytest.approx(float(told["sum_sq"]), rel=1e-6)


def test_delta_m(arrays):
    told = arrays("delta_m")

    def row(number, lower):
        return Task(f"task{number}", 1, "l1", 1.0, "RMSE", "metres", bool(lower), "grey")

    rows = Dataset("five tasks", (1, 1), tuple(row(k, lower) for k, lower in enumerate(told["lower_is_better"])))
    multi, single = (dict(zip(rows.names, told[side].tolist(), strict=True)) for side in ("multi", "single"))
    found = delta_m(rows, multi, single)
    assert list(found.per_task.values()) == pytest.approx(told["per_task"].tolist(), abs=1e-9)
    assert found.value == pytest.approx(float(told["delta_m"]), abs=1e-9)
    assert gain(0.9, 1.0, lower_is_better=True) == pytest.approx(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_maxfm_of_three_real_predictions(test_data, dtype):
    folder = test_data / "saliency"
    published = json.loads((folder / "version_performance.json").read_text())["v1_4_0"]["maxFm"]
    metric = MaxFPerImage()
    for path in sorted((folder / "test_data/masks").iterdir()):
        mask = np.array(Image.open(path).convert("L"))
        grey = np.array(Image.open(folder / "test_data/preds" / path.name).convert("L"))
        metric.update(_tensor(grey).to(dtype) / 255, _tensor((mask > 128).astype(np.uint8)))
    result = metric.result()
    assert result.images == 3
    assert result.value == pytest.approx(100 * published, rel=1e-12)
