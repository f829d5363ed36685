"""Task losses against the reference, and where the reference has no answer."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sak.errors import UsageError
from sak.losses.tasks import LOSSES, balanced_bce, balanced_cross_entropy, cross_entropy, l1, normals_l1, task_losses
from sak.tasks import DATASETS, NYUD, PASCAL_CONTEXT
from sak.variants.weighting import Fixed

CASES = {"pascal": PASCAL_CONTEXT, "pascal_hp_all_ignored": PASCAL_CONTEXT, "nyud": NYUD}


@pytest.fixture(scope="module")
def reference(golden):
    folder = golden / "sak"
    return load_file(folder / "04_task_losses.safetensors"), json.loads((folder / "04_task_losses.json").read_text())


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _labels(high, *shape, seed=0, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(high, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)


def total_of(rows, losses):
    """The tasks' part of the loss, with the table's weights."""
    return torch.stack(list(Fixed(rows.weights)(losses).values())).sum()


def _losses_and_gradients(tensors, case, dtype):
    rows = CASES[case]
    predictions = {task: tensors[f"{case}.pred.{task}"].to(dtype, copy=True).requires_grad_() for task in rows.names}
    losses = task_losses(rows, predictions, {task: tensors[f"{case}.label.{task}"] for task in rows.names})
    total_of(rows, losses).backward()
    return losses, {task: prediction.grad for task, prediction in predictions.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("f64", torch.float64, 1e-10), ("f32", torch.float32, 1e-5)])
def test_losses_are_the_references(reference, case, name, dtype, tolerance):
    tensors, told = reference
    losses, _ = _losses_and_gradients(tensors, case, dtype)
    found = {task: CASES[case].weights[task] * loss.item() for task, loss in losses.items()}
    expected = told["losses"][case][name]
    assert {**found, "total": total_of(CASES[case], losses).item()} == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_references(reference, case):
    tensors, _ = reference
    _, gradients = _losses_and_gradients(tensors, case, torch.float32)
    for task, gradient in gradients.items():
        expected = tensors[f"{case}.grad.{task}"]
        assert (gradient - expected).abs().max() <= 1e-7 * expected.abs().max(), task


@pytest.mark.parametrize("case", CASES)
def test_float64_gradients_differ_from_the_references_by_what_float32_rounds_away(reference, case):
    """The reference's are those of its float32 run, which float32 reproduces."""
    tensors, _ = reference
    _, rounded = _losses_and_gradients(tensors, case, torch.float32)
    _, gradients = _losses_and_gradients(tensors, case, torch.float64)
    for task, gradient in gradients.items():
        expected = tensors[f"{case}.grad.{task}"]
        bound = (gradient - rounded[task]).abs().max() + 1e-7 * expected.abs().max()
        assert (gradient - expected).abs().max() <= bound, task
        assert bound <= 1e-6 * expected.abs().max(), task


@pytest.mark.parametrize("rows", [PASCAL_CONTEXT, NYUD], ids=lambda rows: rows.name)
def test_a_batch_without_a_valid_pixel_costs_nothing(rows):
    predictions = {task.name: _random(2, task.channels, 4, 5).requires_grad_() for task in rows}
    labels = {task.name: torch.full((2, 1 if task.classes else task.channels, 4, 5), 255.0) for task in rows}
    losses = task_losses(rows, predictions, labels)
    total_of(rows, losses).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all((prediction.grad == 0).all() for prediction in predictions.values())


def test_every_loss_of_the_table_exists():
    assert {task.loss for rows in DATASETS.values() for task in rows} == set(LOSSES)


def test_cross_entropy_is_the_mean_over_valid_pixels():
    logits, labels = _random(2, 5, 4, 6), _labels(5, 2, 1, 4, 6)
    expected = F.cross_entropy(logits, labels[:, 0], ignore_index=255)
    assert cross_entropy(logits, labels.float()).item() == pytest.approx(expected.item(), rel=1e-12)


def test_saliency_weights_are_the_share_of_the_other_class():
    logits, labels = _random(2, 2, 4, 6), _labels(2, 2, 1, 4, 6)
    valid = labels != 255
    share = (labels == 1).sum() / valid.sum()
    by_pixel = F.cross_entropy(logits, labels[:, 0], ignore_index=255, reduction="none")[:, None]
    expected = ((labels == 0) * share * by_pixel + (labels == 1) * (1 - share) * by_pixel).sum() / valid.sum()
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("only", [0, 1])
def test_saliency_of_one_class_alone_costs_nothing(only):
    assert balanced_cross_entropy(_random(1, 2, 3, 3), torch.full((1, 1, 3, 3), only)) == 0


def test_edges_are_weighted_against_the_rest():
    logits, labels = _random(2, 1, 4, 6), _labels(2, 2, 1, 4, 6).double()
    positive, negative = -F.logsigmoid(logits[labels == 1]), -F.logsigmoid(-logits[labels == 0])
    expected = (0.95 * positive.sum() + 0.05 * negative.sum()) / (labels != 255).sum()
    assert balanced_bce(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_normal_with_255_in_one_channel_does_not_count():
    prediction, label = _random(1, 3, 1, 2), F.normalize(_random(1, 3, 1, 2, seed=1), dim=1)
    label[0, 1, 0, 0] = 255
    expected = (F.normalize(prediction, dim=1) - label)[..., 1].abs().sum()
    assert normals_l1(prediction, label).item() == pytest.approx(expected.item(), rel=1e-12)


def test_depth_is_the_mean_absolute_error_over_valid_pixels():
    prediction, label = _random(2, 1, 4, 5), _random(2, 1, 4, 5, seed=1).abs()
    label[0, 0, 0] = 255
    expected = (prediction - label)[label != 255].abs().mean()
    assert l1(prediction, label).item() == pytest.approx(expected.item(), rel=1e-12)


GRADCHECKS = {
    "cross_entropy": (3, lambda: _labels(3, 2, 1, 3, 4)),
    "balanced_cross_entropy": (2, lambda: _labels(2, 2, 1, 3, 4)),
    "balanced_bce": (1, lambda: _labels(2, 2, 1, 3, 4)),
    "normals_l1": (3, lambda: _random(2, 3, 3, 4, seed=1).masked_fill(_labels(2, 2, 1, 3, 4) == 255, 255)),
    "l1": (1, lambda: _random(2, 1, 3, 4, seed=1).masked_fill(_labels(2, 2, 1, 3, 4) == 255, 255)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_in_float64(name):
    channels, label = GRADCHECKS[name]
    prediction, labels = _random(2, channels, 3, 4).requires_grad_(), label()
    assert torch.autograd.gradcheck(lambda values: LOSSES[name](values, labels), (prediction,))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_losses_are_float32_for_half_precision_and_under_autocast(reference, half):
    tensors, _ = reference
    predictions = {task: tensors[f"nyud.pred.{task}"].to(half) for task in NYUD.names}
    labels = {task: tensors[f"nyud.label.{task}"] for task in NYUD.names}
    expected = task_losses(NYUD, {task: map_.float() for task, map_ in predictions.items()}, labels)
    with torch.autocast("cpu", torch.bfloat16):
        losses = task_losses(NYUD, predictions, labels)
        total = total_of(NYUD, losses)
    assert total.dtype == torch.float32
    assert losses == expected
    assert total == total_of(NYUD, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
def test_labels_may_have_any_dtype(dtype):
    logits, labels = _random(2, 2, 4, 6, dtype=torch.float32), _labels(2, 2, 1, 4, 6)
    for name, channels in (("cross_entropy", 2), ("balanced_cross_entropy", 2), ("balanced_bce", 1)):
        found = LOSSES[name](logits[:, :channels], labels.to(dtype))
        assert found.dtype == torch.float32
        assert found == LOSSES[name](logits[:, :channels], labels)


def test_a_selection_of_tasks_is_a_smaller_sum(reference):
    tensors, _ = reference
    some = PASCAL_CONTEXT.select(["semseg", "edge"])
    predictions = {task: tensors[f"pascal.pred.{task}"] for task in PASCAL_CONTEXT.names}
    labels = {task: tensors[f"pascal.label.{task}"] for task in PASCAL_CONTEXT.names}
    losses = task_losses(some, predictions, labels)
    assert list(losses) == ["semseg", "edge"]
    expected = losses["semseg"] + 50 * losses["edge"]
    assert total_of(some, losses).item() == pytest.approx(expected.item())


def test_what_is_missing_or_does_not_fit_is_refused_by_name():
    depth = NYUD.select(["depth"])
    map_ = torch.zeros(1, 1, 4, 5)
    with pytest.raises(UsageError, match="nyud: no label for depth"):
        task_losses(depth, {"depth": map_}, {})
    with pytest.raises(UsageError, match="nyud: no prediction for depth"):
        task_losses(depth, {}, {"depth": map_})
    with pytest.raises(
        UsageError, match=r"depth: .* needs labels \(1, 1, 4, 5\), got \(1, 1, 4, 5\) and \(1, 1, 8, 5\)"
    ):
        task_losses(depth, {"depth": map_}, {"depth": torch.zeros(1, 1, 8, 5)})
    semseg = NYUD.select(["semseg"])
    with pytest.raises(UsageError, match=r"semseg: a prediction of 40 channels"):
        task_losses(semseg, {"semseg": torch.zeros(1, 21, 4, 5)}, {"semseg": map_})


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_parts_with_averaged_counts_have_the_mean_of_the_whole_batch(name):
    """As processes share a batch; the second part has far fewer valid pixels, a third has none."""
    channels = {"cross_entropy": 4, "balanced_cross_entropy": 2, "normals_l1": 3}.get(name, 1)
    whole = _random(3, channels, 6, 6)
    label = _labels(2, 3, 3 if name == "normals_l1" else 1, 6, 6)
    label[1, :, 1:], label[2] = 255, 255
    counted: list[list[torch.Tensor]] = [[], [], []]

    def loss_of(part, average):
        return LOSSES[name](whole[part : part + 1], label[part : part + 1], average)

    for part in range(3):  # first what each counts, then each with the means of all
        loss_of(part, lambda value, kept=counted[part]: (kept.append(value.double()), value)[1])
    means = [torch.stack(values).mean() for values in zip(*counted, strict=True)]
    losses = []
    for part in range(3):
        given = iter(means)
        losses.append(loss_of(part, lambda value, given=given: next(given)))
    expected = LOSSES[name](whole, label, lambda value: value)
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=1e-12, atol=0)
