"""Every key, shape and parameter count of the real sizes, on the meta device."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from sak.checkpoints.reference import from_reference_state_dict, to_reference_state_dict
from sak.student.build import make_student, parameter_counts
from sak.student.config import StudentConfig
from sak.student.sizes import STEMS
from sak.student.student import Student

S, B, L = STEMS
TEACHERS = ("dinov2", "clip", "sam")
CASES = {
    f"{teacher}{student}_{stage}": (width, stem, stage)
    for teacher, student, width, stem in (
        ("B", "S", 768, S),
        ("B", "B", 768, B),
        ("L", "B", 1024, B),
        ("L", "L", 1024, L),
    )
    for stage in ("s1_384", "s2_pascalcontext", "s2_nyud")
}
STAGES = {
    "s1_384": ((384, 384), {}),
    "s2_pascalcontext": ((512, 512), {"semseg": 21, "human_parts": 7, "normals": 3, "edge": 1, "sal": 2}),
    "s2_nyud": ((448, 576), {"semseg": 40, "normals": 3, "edge": 1, "depth": 1}),
}


@cache
def student_of(case) -> Student:
    width, stem, stage = CASES[case]
    image_size, tasks = STAGES[stage]
    with torch.device("meta"):
        return make_student(
            StudentConfig(image_size=image_size, stem=stem, teachers=dict.fromkeys(TEACHERS, width), tasks=tasks)
        )


@pytest.fixture(scope="module")
def layouts(golden: Path):
    return json.loads((golden / "layouts.json").read_text())


@pytest.fixture(scope="module")
def counts(golden: Path):
    return json.loads((golden / "param_counts.json").read_text())["counts"]


@pytest.mark.parametrize("case", CASES)
def test_every_key_and_shape_in_its_order_is_the_authors(case, layouts):
    ours = {key: list(tensor.shape) for key, tensor in to_reference_state_dict(student_of(case)).items()}
    assert list(ours.items()) == list(layouts[case].items())


def test_the_reference_has_no_other_layouts(layouts, counts):
    assert set(layouts) == set(counts) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_layout_alone_tells_the_student(case, layouts):
    _, stem, stage = CASES[case]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in layouts[case].items()}
    image_size, tasks = STAGES[stage]
    student = from_reference_state_dict(
        tensors, image_size=image_size, num_heads=STEMS[stem].heads, teachers=TEACHERS, tasks=tuple(tasks)
    )
    assert student.config.size == STEMS[stem]
    assert student.config.tapped == student_of(case).config.tapped
    assert {key: list(value.shape) for key, value in to_reference_state_dict(student).items()} == layouts[case]


@pytest.mark.parametrize("case", CASES)
def test_parameter_counts_are_the_authors(case, counts):
    student, expected = student_of(case), counts[case]
    ours = parameter_counts(student)
    assert ours == {name: expected[name] for name in ours}
    per_teacher = sum(parameter.numel() for parameter in student.paths["sam"].parameters())
    assert per_teacher == expected["TSAP_adapters_per_teacher"]
    heads = {task: sum(parameter.numel() for parameter in head.parameters()) for task, head in student.heads.items()}
    assert heads == expected.get("heads_each", {})
    if "MoR_per_task" in expected:
        assert ours["MoR"] == expected["MoR_per_task"] * len(heads)


def test_the_large_students_have_the_papers_407_and_394_million_parameters():
    assert round(parameter_counts(student_of("LL_s2_pascalcontext"))["total"] / 1e6) == 407
    assert round(parameter_counts(student_of("LL_s2_nyud"))["total"] / 1e6) == 394


@pytest.mark.parametrize("stem", [S, B, L])
def test_each_adapter_path_is_under_5_percent_of_the_stem(stem):
    with torch.device("meta"):
        student = make_student(StudentConfig(image_size=(384, 384), stem=stem, teachers=dict.fromkeys(TEACHERS, None)))
    ours = parameter_counts(student)
    assert ours["TSAP"] / 3 < 0.05 * ours["TAS"]
