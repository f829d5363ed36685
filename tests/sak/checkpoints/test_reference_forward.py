"""The student computes what the published implementation computes."""

import pytest
import torch

from sak.checkpoints.reference import from_reference_state_dict
from sak.features import bilinear_resize
from sak.student.router import mix
from sak.student.student import Student

TEACHERS = ("dinov2", "clip", "sam")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def student_of(reference, dtype=torch.float32, **options) -> Student:
    student = from_reference_state_dict(
        reference.state_dict,
        image_size=tuple(reference.meta["img_size"]),
        num_heads=3,
        teachers=TEACHERS,
        tasks=reference.meta.get("tasks"),
        **options,
    )
    return student.to(dtype).eval()


def close(ours, theirs, dtype=None):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype or ours.dtype])


@pytest.mark.parametrize("precision", DTYPES)
@torch.no_grad()
def test_stage_1_features_equal_the_reference(stage1, precision):
    dtype = DTYPES[precision]
    output = student_of(stage1, dtype)(stage1.tensors["input"].to(dtype))
    assert tuple(output.teachers) == TEACHERS
    for teacher, maps in output.teachers.items():
        for place, map_ in enumerate(maps, start=1):
            close(map_, stage1.tensors[f"{precision}.{teacher}.level{place}"])


@torch.no_grad()
def test_every_intermediate_of_stage_1_equals_the_reference(stage1):
    student = student_of(stage1)
    tokens = student.stem(stage1.tensors["input"])
    paths = student.paths(tokens, range(13))
    ours = {"tokens_in": tokens[0]} | {f"tas_block{block}": z for block, z in enumerate(tokens[1:])}
    for block, all_teachers in enumerate(paths):
        ours |= {f"tsap_{teacher}_{block}": all_teachers[i] for i, teacher in enumerate(TEACHERS)}
    theirs = stage1.under("inter.")
    assert len(theirs) > 6
    for name, expected in theirs.items():
        close(ours[name], expected)


@torch.no_grad()
def test_adapters_one_after_another_equal_the_stacked_ones(stage1):
    student, images = student_of(stage1, torch.float64), stage1.tensors["input"].double()
    stacked = student(images)
    student.paths.stacked = False
    for teacher, maps in student(images).teachers.items():
        for one, other in zip(maps, stacked.teachers[teacher], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", DTYPES)
@torch.no_grad()
def test_gates_in_evaluation_equal_the_reference(stage2, precision):
    dtype = DTYPES[precision]
    output = student_of(stage2, dtype, dataset="nyud")(stage2.tensors["input"].to(dtype))
    for position, level in enumerate((3, 6, 9, 12), start=1):
        for task in stage2.meta["tasks"]:
            close(output.gates[level][task], stage2.tensors[f"eval.{precision}.gate.level{position}.{task}"])


@torch.no_grad()
def test_evaluation_of_stage_2_equals_the_reference(stage2):
    student, images = student_of(stage2), stage2.tensors["input"]
    heads: dict[str, torch.Tensor] = {}
    for task, head in student.heads.items():
        head.register_forward_hook(lambda _module, _inputs, out, task=task: heads.__setitem__(task, out))
    output = student(images)
    for task in stage2.meta["tasks"]:
        close(heads[task], stage2.tensors[f"eval.f32.head.{task}"])
        check_prediction(stage2, "eval", task, output.tasks[task])
    for teacher, maps in output.teachers.items():
        for place, map_ in enumerate(maps, start=1):
            close(map_, stage2.tensors[f"eval.f32.aligned.{teacher}.level{place}"])
    for level, tas in zip((3, 6, 9, 12), output.tas, strict=True):
        patches = tas.flatten(2).transpose(1, 2)
        for task in stage2.meta["tasks"]:
            raw = student.routers[str(level)][task].logits(patches)
            close(raw, stage2.tensors[f"eval.f32.router_raw.{level - 1}_{task}"])


def check_prediction(stage2, mode, task, prediction):
    """The whole map where it is stored, else every third pixel and the sum of its squares."""
    whole = stage2.tensors.get(f"{mode}.f32.out.{task}")
    if whole is not None:
        close(prediction, whole)
        return
    close(prediction[:, :, 1::3, 1::3], stage2.tensors[f"{mode}.f32.out_sub3.{task}"])
    checksum = stage2.meta["out_checksums"][f"{mode}.f32.out.{task}"]
    assert list(prediction.shape) == checksum["shape"]
    assert prediction.double().square().sum().item() == pytest.approx(checksum["sq_sum"], rel=1e-5)


@torch.no_grad()
def test_training_of_stage_2_with_the_same_noise_equals_the_reference(stage2):
    student = student_of(stage2, gate_noise="pixel").train()
    heads: dict[str, torch.Tensor] = {}
    for task, head in student.heads.items():
        head.register_forward_hook(lambda _module, _inputs, out, task=task: heads.__setitem__(task, out))
    output = student(stage2.tensors["input"], noise=noise_of(stage2))
    for position, level in enumerate((3, 6, 9, 12), start=1):
        for task in stage2.meta["tasks"]:
            close(output.gates[level][task], stage2.tensors[f"train.f32.gate.level{position}.{task}"])
    for name, expected in stage2.under("train.f32.mor_out.").items():
        block, task = name.split("_", 1)
        level = int(block) + 1
        experts = [output.tas[level], *(maps[level] for maps in output.paths.values())]
        close(mix(output.gates[level][task], experts), expected)
    for task in stage2.meta["tasks"]:
        close(heads[task], stage2.tensors[f"train.f32.head.{task}"])
        check_prediction(stage2, "train", task, output.tasks[task])
        close(output.tasks[task], bilinear_resize(heads[task], (96, 128)))
    buffers = dict(student.named_buffers())
    for name, expected in stage2.under("train.f32.bn_after.").items():
        torch.testing.assert_close(buffers[name.replace("linear_fuse", "fuse")], expected, rtol=1e-5, atol=1e-6)


def noise_of(stage2):
    tasks = stage2.meta["tasks"]
    return {
        level: {task: stage2.tensors[f"train.eps.level{position}.{task}"] for task in tasks}
        for position, level in enumerate((3, 6, 9, 12), start=1)
    }
