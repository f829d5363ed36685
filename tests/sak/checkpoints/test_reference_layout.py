"""The authors' layout in and out, and what does not fit it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sak.checkpoints.reference import (
    from_reference_state_dict,
    import_checkpoint,
    read_reference_file,
    to_reference_state_dict,
)
from sak.checkpoints.store import load_student
from sak.errors import SakError, UsageError
from sak.student.build import build_student, many_to_one, multi_task_baseline, without_lora
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize

TEACHERS = ("dinov2", "clip", "sam")
CONFIG = StudentConfig(
    image_size=(64, 96),
    stem=StemSize(width=24, depth=4, heads=3),
    weights="random:3",
    teachers={"dinov2": 32, "clip": 24, "sam": 16},
    tasks={"semseg": 40, "depth": 1},
    down_ratio=2,
)


def back(student, **options):
    options = {"image_size": (64, 96), "num_heads": 3, "teachers": tuple(student.config.teachers)} | options
    return from_reference_state_dict(to_reference_state_dict(student), **options)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        many_to_one(CONFIG),
        multi_task_baseline(CONFIG),
        StudentConfig.from_json(CONFIG.to_json() | {"fusion": "sum"}),
        StudentConfig.from_json(CONFIG.to_json() | {"levels": (1, 4)}),
        StudentConfig.from_json(CONFIG.to_json() | {"tasks": {}}),
    ],
    ids=["mor", "many-to-one", "multi-task", "sum", "two levels", "stage 1"],
)
def test_a_student_survives_the_way_out_and_back(config):
    student = build_student(config).eval()
    again = back(student).eval()
    images = torch.randn(1, 3, 64, 96)
    one, other = student(images), again(images)
    assert list(one.tasks) == list(other.tasks)
    for task, prediction in one.tasks.items():
        assert torch.equal(prediction, other.tasks[task])
    for teacher, maps in one.teachers.items():
        assert all(torch.equal(a, b) for a, b in zip(maps, other.teachers[teacher], strict=True))
    assert student.state_dict().keys() == again.state_dict().keys()


def test_a_golden_state_dict_comes_back_bit_for_bit_and_in_order(stage2):
    student = from_reference_state_dict(stage2.state_dict, image_size=(96, 128), num_heads=3, teachers=TEACHERS)
    out = to_reference_state_dict(student)
    assert list(out) == stage2.meta["state_dict_order"]
    assert all(torch.equal(value, stage2.state_dict[key]) for key, value in out.items())


def test_the_student_owns_its_tensors(stage1):
    state = stage1.state_dict
    before = state["vit.cls_token"].clone()
    student = from_reference_state_dict(state, image_size=(96, 96), num_heads=3, teachers=TEACHERS)
    with torch.no_grad():
        student.stem.vit.cls_token.add_(1)
    assert torch.equal(state["vit.cls_token"], before)
    assert all(parameter.requires_grad for parameter in student.parameters())


def spoil_missing(state):
    del state["backbone.tsap.clip.2.up.weight"]


def spoil_down(state):
    state["backbone.tsap.dinov2.0.down.weight"] = torch.ones(0, 24)


def spoil_extra(state):
    state["backbone.vit.norm.weight"] = torch.ones(24)


def spoil_shape(state):
    state["backbone.mor.0_depth.router.module.3.weight"] = torch.ones(6, 12)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, r"lacks backbone\.tsap\.clip\.2\.up\.weight"),
        (spoil_down, r"tsap\.dinov2\.0\.down\.weight is \(0, 24\): 0 do not divide 24"),
        (spoil_extra, r"has unknown backbone\.vit\.norm\.weight"),
        (spoil_shape, r"mor\.0_depth\.router\.module\.3\.weight is \(6, 12\), the student needs \(8, 12\)"),
    ],
)
def test_a_layout_that_does_not_fit_names_the_key(spoil, message):
    state = to_reference_state_dict(build_student(CONFIG))
    spoil(state)
    with pytest.raises(SakError, match=message):
        from_reference_state_dict(state, image_size=(64, 96), num_heads=3, teachers=TEACHERS)


def test_another_layout_is_refused_with_its_first_keys():
    with pytest.raises(SakError, match=r"no vit\.cls_token.*encoder\.weight"):
        from_reference_state_dict({"encoder.weight": torch.ones(1)}, image_size=(64, 64), num_heads=1, teachers=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ()}, r"teachers dinov2, clip, sam; got \(none\)"),
        ({"num_heads": 0}, "whole numbers from 1"),
        ({"teachers": ("dinov2", "clip")}, "teachers dinov2, clip, sam; got dinov2, clip"),
        ({"tasks": ("semseg", "edge")}, "tasks semseg, depth; got semseg, edge"),
        ({"num_heads": 5}, "multiple of its heads"),
        ({"dataset": "pascal-context"}, "head of semseg has 40 channels, pascal-context has 21"),
        ({"dataset": "nyu"}, "did you mean 'nyud'"),
    ],
)
def test_arguments_that_do_not_fit_the_layout_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        back(build_student(CONFIG), **options)


def test_the_order_of_experts_is_the_order_given_not_the_files():
    student = build_student(CONFIG)
    assert back(student, teachers=("sam", "dinov2", "clip")).config.experts == ("TAS", "sam", "dinov2", "clip")


def test_lora_has_no_place_in_the_layout_until_it_is_merged():
    student = build_student(StudentConfig.from_json(CONFIG.to_json() | {"lora": {"rank": 2}}))
    with pytest.raises(UsageError, match="merge it first"):
        to_reference_state_dict(student)
    assert (
        to_reference_state_dict(without_lora(student)).keys() == to_reference_state_dict(build_student(CONFIG)).keys()
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pytorch_file_is_imported_in_its_own_order(tmp_path, wrapped):
    student = build_student(CONFIG).eval()
    state = {f"module.{key}": value for key, value in to_reference_state_dict(student).items()}
    torch.save({"model": state, "iter": 7} if wrapped else state, tmp_path / "theirs.pth")
    import_checkpoint(tmp_path / "theirs.pth", tmp_path / "run", image_size=(64, 96), num_heads=3, dataset="nyud")
    again = load_student(tmp_path / "run").eval()
    assert again.config.experts == ("TAS", *TEACHERS)
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(student(images).tasks["semseg"], again(images).tasks["semseg"])


def test_a_sorted_file_needs_the_order_of_its_teachers(tmp_path):
    save_file(to_reference_state_dict(build_student(CONFIG)), tmp_path / "theirs.safetensors")
    with pytest.raises(UsageError, match="give --teachers in order"):
        import_checkpoint(tmp_path / "theirs.safetensors", tmp_path / "run", image_size=(64, 96), num_heads=3)


def test_an_image_size_that_cannot_be_told_is_asked_for(tmp_path):
    torch.save(to_reference_state_dict(build_student(CONFIG)), tmp_path / "theirs.pth")
    with pytest.raises(UsageError, match="24 patches, no square: give --image-size HEIGHT WIDTH"):
        import_checkpoint(tmp_path / "theirs.pth", tmp_path / "run", num_heads=3)


def test_an_existing_run_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="exists; choose another --out"):
        import_checkpoint(tmp_path / "theirs.pth", tmp_path / "run")


def test_a_run_that_is_a_file_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file; --out is the folder"):
        import_checkpoint(tmp_path / "theirs.pth", tmp_path / "run", overwrite=True)


@pytest.mark.parametrize("options", [{"num_heads": 0}, {"teachers": []}])
def test_nothing_given_is_not_taken_for_the_default(tmp_path, options):
    torch.save(to_reference_state_dict(build_student(CONFIG)), tmp_path / "theirs.pth")
    with pytest.raises(UsageError):
        import_checkpoint(tmp_path / "theirs.pth", tmp_path / "run", image_size=(64, 96), **options)
    assert not (tmp_path / "run").exists()


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(tmp_path, zipped):
    file, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"model": Code(ran)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SakError, match=r"evil\.pth: .*objects other than tensors, which are never loaded"):
        read_reference_file(file)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["cut.pth", "empty.pth", "cut.safetensors"])
def test_a_cut_off_file_is_one_clear_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"PK\x03\x04 not all of it")
    with pytest.raises(
        SakError, match=r"damaged or no safetensors file|cannot be read as tensors|is damaged"
    ) as caught:
        read_reference_file(tmp_path / name)
    assert "\n" not in str(caught.value)
