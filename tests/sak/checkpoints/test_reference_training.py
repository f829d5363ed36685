"""Student and losses together learn what the published implementation learns, in float64."""

import pytest
import torch

from sak.checkpoints.reference import from_reference_state_dict, reference_key
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss
from sak.losses.tasks import task_losses
from sak.tasks import NYUD
from sak.variants.weighting import Fixed

TEACHERS = ("dinov2", "clip", "sam")
LEVELS = (3, 6, 9, 12)
EXACT = 1e-10
IN_FLOAT32 = 1e-5


def student_of(reference, dtype=torch.float64, **options):
    size = tuple(reference.meta["img_size"])
    student = from_reference_state_dict(
        reference.state_dict, image_size=size, num_heads=3, teachers=TEACHERS, gate_noise="pixel", **options
    )
    return student.to(dtype).train()


def targets_of(reference, prefix, dtype=torch.float64):
    return {
        teacher: FeatureMaps(
            LEVELS, tuple(reference.tensors[f"{prefix}.{teacher}.level{i}"].to(dtype) for i in (1, 2, 3, 4))
        )
        for teacher in TEACHERS
    }


def check_distillation(losses, expected, tolerance=EXACT):
    for name, loss in losses.by_level().items():
        teacher, _, level = name.partition("/level")
        recorded = f"{teacher}_level{LEVELS.index(int(level)) + 1}"
        assert loss.item() == pytest.approx(expected[recorded], rel=tolerance)
    assert losses.total.item() == pytest.approx(expected["total"], rel=tolerance)


def checksums(tensor):
    return {"abs_sum": tensor.abs().sum().item(), "sq_sum": tensor.square().sum().item()}


def fine_tuning_step(stage2, dtype, *, name, tolerance):
    """The student after one backward pass in the reference's noise; its losses are checked on the way."""
    student = student_of(stage2, dtype, dataset="nyud")
    noise = {
        level: {task: stage2.tensors[f"train.eps.level{i}.{task}"].to(dtype) for task in stage2.meta["tasks"]}
        for i, level in enumerate(LEVELS, start=1)
    }
    output = student(stage2.tensors["input"].to(dtype), noise=noise)
    labels = {task: stage2.tensors[f"label.{task}"].to(dtype) for task in stage2.meta["tasks"]}
    tasks = task_losses(NYUD, output.tasks, labels)
    distillation = DistillationLoss()(output.teachers, targets_of(stage2, "tea", dtype))
    for task, loss in tasks.items():
        expected = stage2.meta[f"train.{name}.task_loss"][task]
        assert NYUD[task].weight * loss.item() == pytest.approx(expected, rel=tolerance)
    check_distillation(distillation, stage2.meta[f"train.{name}.kd_loss"], tolerance)
    total = torch.stack(list(Fixed(NYUD.weights)(tasks).values())).sum() + distillation.total
    assert total.item() == pytest.approx(stage2.meta[f"train.{name}.total"], rel=tolerance)
    total.backward()
    return student


def test_a_fine_tuning_step_in_float32_equals_the_reference(stage2):
    student = fine_tuning_step(stage2, torch.float32, name="f32", tolerance=IN_FLOAT32)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in student.parameters()]).item()
    assert norm == pytest.approx(stage2.meta["train.f32.grad_global_norm"], rel=IN_FLOAT32)


@pytest.fixture(scope="module")
def stage2_gradients(stage2):
    """Gradients of one fine-tuning step under the authors' names."""
    student = fine_tuning_step(stage2, torch.float64, name="f64", tolerance=EXACT)
    return {reference_key(name, with_tasks=True): parameter.grad for name, parameter in student.named_parameters()}


def test_gradients_of_a_fine_tuning_step_equal_the_reference(stage2, stage2_gradients):
    expected = stage2.under("train.f64_as_f32.grad.")
    assert len(expected) == 239
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    nothing = 1e-14 * largest  # rounding, where a gradient is zero by construction (a bias before a normalisation)
    for key, gradient in expected.items():
        difference = (stage2_gradients[key] - gradient).abs().max().item()
        assert difference <= max(1e-7 * gradient.abs().max().item(), nothing), key


def test_checksums_of_every_gradient_equal_the_reference(stage2, stage2_gradients):
    norm = torch.stack([gradient.norm() for gradient in stage2_gradients.values()]).norm().item()
    assert norm == pytest.approx(stage2.meta["train.f64.grad_global_norm"], rel=EXACT)
    expected = stage2.meta["train.f64.grad_checksums"]
    assert expected.keys() == stage2_gradients.keys()
    for key, sums in expected.items():
        ours = checksums(stage2_gradients[key])
        floor = 1e-13 * stage2_gradients[key].numel()
        assert ours["abs_sum"] == pytest.approx(sums["abs_sum"], rel=EXACT, abs=floor), key
        assert ours["sq_sum"] == pytest.approx(sums["sq_sum"], rel=EXACT, abs=floor), key


def test_three_steps_of_distillation_equal_the_reference(stage1, trajectory):
    student = student_of(stage1)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    loss_of = DistillationLoss()
    for step in range(3):
        losses = loss_of(
            student(trajectory.tensors[f"step{step}.input"].double()).teachers,
            targets_of(trajectory, f"step{step}.tea"),
        )
        check_distillation(losses, trajectory.meta["f64.losses"][step])
        optimiser.zero_grad()
        losses.total.backward()
        gradients = [parameter.grad for parameter in student.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        assert norm == pytest.approx(trajectory.meta["f64.grad_norms"][step], rel=EXACT)
        optimiser.step()
    with torch.no_grad():
        last = loss_of(
            student(trajectory.tensors["step0.input"].double()).teachers, targets_of(trajectory, "step0.tea")
        )
    check_distillation(last, trajectory.meta["f64.losses"][3])
    ours = {reference_key(name, with_tasks=False): parameter.detach() for name, parameter in student.named_parameters()}
    for key, expected in trajectory.under("f64_final.").items():
        torch.testing.assert_close(ours[key], expected, rtol=0, atol=EXACT, msg=key)
    for key, sums in trajectory.meta["f64.final_checksums"].items():
        assert checksums(ours[key]) == pytest.approx({name: sums[name] for name in ("abs_sum", "sq_sum")}, rel=EXACT), (
            key
        )
