"""`sak-cli import-checkpoint` on a small file in each of the authors' twelve layouts."""

import json

import pytest
import torch

import cli
from sak.checkpoints.reference import to_reference_state_dict
from sak.checkpoints.store import load_student
from sak.student.build import build_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize

SIZES = {"S": (12, 16), "B": (12, 24), "L": (24, 32)}
"""Depth, which is the real one, and width by the letter of a layout."""

STAGES = {
    "s1_384": ("", {}),
    "s2_pascalcontext": ("pascal-context", {"semseg": 21, "human_parts": 7, "normals": 3, "edge": 1, "sal": 2}),
    "s2_nyud": ("nyud", {"semseg": 40, "normals": 3, "edge": 1, "depth": 1}),
}
CASES = [f"{sizes}_{stage}" for sizes in ("BS", "BB", "LB", "LL") for stage in STAGES]


def student_of(case):
    sizes, _, stage = case.partition("_")
    depth, width = SIZES[sizes[1]]
    return build_student(
        StudentConfig(
            image_size=(64, 64),
            stem=StemSize(width=width, depth=depth, heads=2),
            weights="random:0",
            teachers=dict.fromkeys(("dinov2", "clip", "sam"), SIZES[sizes[0]][1]),
            tasks=STAGES[stage][1],
        )
    ).eval()


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["import-checkpoint", *map(str, arguments)])
    return stop.value.code


@pytest.mark.parametrize("case", CASES)
def test_a_file_in_each_layout_becomes_a_checkpoint_that_computes_the_same(case, golden, tmp_path, capsys):
    student = student_of(case)
    state = to_reference_state_dict(student)
    assert list(state) == list(json.loads((golden / "layouts.json").read_text())[case])
    torch.save({"model": state, "iter": 3}, tmp_path / "theirs.pth")
    dataset = STAGES[case.partition("_")[2]][0]
    options = ("--dataset", dataset) if dataset else ()
    out = tmp_path / "run"
    assert run(tmp_path / "theirs.pth", "--out", out, "--num-heads", 2, "--image-size", 64, 64, *options) == 0
    assert capsys.readouterr().out == f"Wrote {out / 'student.safetensors'}\n"
    again = load_student(out).eval()
    images = torch.randn(1, 3, 64, 64)
    one, other = student(images), again(images)
    assert list(one.tasks) == list(other.tasks)
    assert all(torch.equal(value, other.tasks[task]) for task, value in one.tasks.items())
    for teacher, maps in one.teachers.items():
        assert all(torch.equal(map_, same) for map_, same in zip(maps, other.teachers[teacher], strict=True))


def test_a_fine_tuned_file_takes_its_data_sets_size(tmp_path):
    torch.save(to_reference_state_dict(student_of("BS_s2_nyud")), tmp_path / "theirs.pth")
    assert run(tmp_path / "theirs.pth", "--out", tmp_path / "run", "--num-heads", 2, "--dataset", "nyud") == 0
    assert load_student(tmp_path / "run").config.image_size == (448, 576)


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (("--dataset", "nyu"), "sak-cli: no data set 'nyu'; did you mean 'nyud'?", 2),
        (("--image-size", "65", "64"), "image_size must be (height, width) in multiples of 16, got (65, 64)", 2),
        (("--teachers", "dinov2,clip"), "the state dict has the teachers dinov2, clip, sam; got dinov2, clip", 2),
        (("--num-heads", "3"), "its width a multiple of its heads", 2),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, capsys, arguments, line, code):
    torch.save(to_reference_state_dict(student_of("BS_s2_nyud")), tmp_path / "theirs.pth")
    assert run(tmp_path / "theirs.pth", "--out", tmp_path / "run", *arguments) == code
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
