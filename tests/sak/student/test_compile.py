"""The student is one graph for torch.compile."""

import warnings
from dataclasses import replace

import pytest
import torch

from sak.student.build import build_student
from sak.student.sizes import StemSize


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own libraries warn of themselves
        yield


@pytest.fixture
def tiny(tiny):
    """Small enough for the compiler: two blocks, both tapped, two teachers, one task."""
    teachers = {"dinov2": 32, "clip": None}
    return replace(tiny, stem=StemSize(24, 2, 3), levels=(1, 2), teachers=teachers, tasks={"depth": 1})


def loss_of(output):
    maps = (map_ for maps in output.teachers.values() for map_ in maps)
    return sum(value.square().mean() for value in (*maps, *output.tasks.values()))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "autocast", "checkpointing", "stage 1"])
def test_forward_and_backward_are_one_graph_and_give_the_same_numbers(tiny, images, mode):
    change = {"gradient_checkpointing": mode == "checkpointing", "tasks": {} if mode == "stage 1" else tiny.tasks}
    student = build_student(replace(tiny, **change)).train()
    noise = {level: {"depth": torch.randn(2, 3)} for level in (1, 2)}
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    gradients = []
    for model in (student, compiled):
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = loss_of(model(images, noise=noise))
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None])
    tolerance = {"rtol": 0.05, "atol": 0.01} if mode == "autocast" else {"rtol": 1e-4, "atol": 1e-6}
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.slow
def test_compiled_code_draws_noise_and_agrees_in_evaluation(tiny, images):
    student = build_student(replace(tiny, levels=(2,)))
    compiled = torch.compile(student, fullgraph=True)
    with torch.no_grad():
        first, second = compiled(images).gates[2]["depth"], compiled(images).gates[2]["depth"]
        assert not torch.equal(first, second)
        student.eval()
        torch.testing.assert_close(
            compiled(images).tasks["depth"], student(images).tasks["depth"], rtol=1e-4, atol=1e-5
        )
