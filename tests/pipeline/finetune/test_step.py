"""The fine-tuning step against the reference, in the reference's own noise."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill.stage import distill_step
from pipeline.finetune.step import Distillation, Objective, finetune_step, without_unused
from sak.checkpoints.reference import from_reference_state_dict
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss
from sak.tasks import NYUD
from sak.variants.weighting import Fixed

TEACHERS, LEVELS = ("dinov2", "clip", "sam"), (3, 6, 9, 12)


@pytest.fixture(scope="module")
def reference(golden):
    """Tensors and meta data of one fine-tuning step with four tasks and three teachers."""
    place = golden / "sak/02b_nyud_stage2_forward"
    return load_file(f"{place}.safetensors"), json.loads(place.with_suffix(".json").read_text())


def student_and_batch(reference, dtype):
    tensors, meta = reference
    state = {key: tensors[f"sd.{key}"] for key in meta["state_dict_order"]}
    student = from_reference_state_dict(state, image_size=tuple(meta["img_size"]), num_heads=3, teachers=TEACHERS,
                                        dataset="nyud", gate_noise="pixel")  # fmt: skip
    batch = SimpleNamespace(
        keys=["a", "b"],
        images=tensors["input"].to(dtype),
        labels={task: tensors[f"label.{task}"].to(dtype) for task in meta["tasks"]},
        targets={
            name: FeatureMaps(LEVELS, tuple(tensors[f"tea.{name}.level{i}"].to(dtype) for i in (1, 2, 3, 4)))
            for name in TEACHERS
        },
        noise={
            level: {task: tensors[f"train.eps.level{i}.{task}"].to(dtype) for task in meta["tasks"]}
            for i, level in enumerate(LEVELS, start=1)
        },
    )
    return student.to(dtype).train(), batch


def objective(gamma=1.0):
    return Objective(NYUD, Fixed(NYUD.weights), (Distillation(DistillationLoss(), gamma),))


@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("f64", torch.float64, 1e-10), ("f32", torch.float32, 1e-5)])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_step_is_gamma_times_distillation_and_the_tasks_of_the_reference(reference, name, dtype, tolerance, gamma):
    meta = reference[1]
    student, batch = student_and_batch(reference, dtype)
    result = finetune_step(objective(gamma))(student, batch)
    tasks, taught = meta[f"train.{name}.task_loss"], meta[f"train.{name}.kd_loss"]
    parts = {key: value.item() for key, value in result.parts.items()}
    assert result.loss.item() == pytest.approx(gamma * taught["total"] + tasks["total"], rel=tolerance)
    assert parts["tasks"] == pytest.approx(tasks["total"], rel=tolerance)
    assert parts["distillation"] == pytest.approx(taught["total"], rel=tolerance)
    for task in NYUD.names:
        assert NYUD[task].weight * parts[f"task/{task}"] == pytest.approx(tasks[task], rel=tolerance)
    for teacher in TEACHERS:
        for i, level in enumerate(LEVELS, start=1):
            assert parts[f"{teacher}/level{level}"] == pytest.approx(taught[f"{teacher}_level{i}"], rel=tolerance)
    if gamma == 1:
        assert result.loss.item() == pytest.approx(meta[f"train.{name}.total"], rel=tolerance)
        result.loss.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in student.parameters()]).item()
        assert norm == pytest.approx(meta[f"train.{name}.grad_global_norm"], rel=tolerance)


def test_some_teachers_alone_are_distilled_and_the_others_aligners_frozen(reference):
    student, batch = student_and_batch(reference, torch.float32)
    batch.targets = {"clip": batch.targets["clip"]}
    result = finetune_step(objective())(without_unused(student, batch.targets), batch)
    assert {name.split("/")[0] for name in result.parts if "/level" in name} == {"clip"}
    result.loss.backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert without
    assert all(name.startswith("aligners.") and ".clip." not in name for name in without)
    assert all(not parameter.requires_grad for name, parameter in student.named_parameters() if name in without)


class Counted:
    """A batch that counts how often its teachers' targets are read, and notes whether the network had run by then."""

    def __init__(self, batch, calls):
        self.batch, self.calls = batch, calls

    @property
    def targets(self):
        self.calls.append("targets")
        return self.batch.targets

    def __getattr__(self, name):
        return getattr(self.batch, name)


def noted(student, calls):
    """The student as a function that notes its calls."""

    def run(*given, **options):
        calls.append("network")
        return student(*given, **options)

    return run


def test_a_fine_tuning_step_reads_the_targets_once_and_before_the_network_runs(reference):
    student, batch = student_and_batch(reference, torch.float32)
    calls = []
    finetune_step(objective())(noted(student, calls), Counted(batch, calls))
    assert calls == ["targets", "network"]


def test_a_distillation_step_reads_the_targets_once_and_before_the_network_runs(reference):
    student, batch = student_and_batch(reference, torch.float32)
    batch.inputs, calls = batch.images, []
    distill_step(DistillationLoss())(noted(student, calls), Counted(batch, calls))
    assert calls == ["targets", "network"]
