"""Stage-1 weights enter stage 2 as in the published code."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.checkpoints.reference import from_reference_state_dict, reference_key, to_reference_state_dict
from sak.checkpoints.store import transfer
from sak.errors import SakError
from sak.student.build import make_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize
from sak.student.stem import resample_position

TEACHERS = ("dinov2", "clip", "sam")
SMALL = StudentConfig(image_size=(64, 64), stem=StemSize(width=24, depth=4, heads=3), teachers={"a": None, "b": 16})


@pytest.fixture
def stage1_student(stage1):
    return from_reference_state_dict(stage1.state_dict, image_size=(96, 96), num_heads=3, teachers=TEACHERS)


@pytest.fixture
def stage2_student(weights_moved):
    channels = {
        key.split(".")[2]: value.shape[0] for key, value in weights_moved.tensors.items() if "last_conv.w" in key
    }
    return make_student(
        StudentConfig(
            image_size=(128, 96),
            stem=StemSize(width=48, depth=12, heads=3),
            teachers=dict.fromkeys(TEACHERS, 48),
            tasks={task: channels[task] for task in ("semseg", "edge")},
        )
    )


def test_every_tensor_of_stage_2_comes_from_where_the_reference_takes_it(weights_moved, stage1_student, stage2_student):
    theirs = weights_moved.under("s2_before.")
    names = {reference_key(key, with_tasks=True): key for key in stage2_student.state_dict()}
    before = stage2_student.state_dict() | {names[key]: value for key, value in theirs.items()}
    stage2_student.load_state_dict(before)
    moved = transfer(stage1_student, stage2_student)
    words = {
        "copied from s1": moved.copied,
        "resampled from s1": moved.resampled,
        "untouched (s2 init)": moved.untouched,
    }
    ours = {reference_key(key, with_tasks=True): word for word, keys in words.items() for key in keys}
    assert ours == {key: value.partition(":")[0] for key, value in weights_moved.meta["provenance"].items()}
    after = to_reference_state_dict(stage2_student)
    torch.testing.assert_close(
        after["backbone.vit.pos_embed"], weights_moved.tensors["after.backbone.vit.pos_embed"], rtol=0, atol=1e-6
    )
    for key, expected in weights_moved.meta["after_checksums"].items():
        value = after[key].double()
        assert list(value.shape) == expected["shape"]
        assert value.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-6, abs=1e-12), key
        assert value.square().sum().item() == pytest.approx(expected["sq_sum"], rel=1e-6, abs=1e-12), key
    with torch.no_grad():
        predictions = stage2_student.eval()(weights_moved.tensors["input"]).tasks
    for task, prediction in predictions.items():
        expected = weights_moved.tensors[f"eval.f32.out_sub3.{task}"]
        torch.testing.assert_close(prediction[:, :, 1::3, 1::3], expected, rtol=0, atol=1e-4)


def test_loading_the_layout_at_another_size_resamples_alike(stage1, weights_moved):
    student = from_reference_state_dict(stage1.state_dict, image_size=(128, 96), num_heads=3, teachers=TEACHERS)
    expected = weights_moved.tensors["after.backbone.vit.pos_embed"]
    torch.testing.assert_close(student.stem.vit.pos_embed.detach(), expected, rtol=0, atol=1e-6)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 6))
def test_the_class_token_stays_and_a_known_square_source_changes_nothing(grid, side):
    embedding = torch.randn(1, 1 + side * side, 4)
    moved = resample_position(embedding, grid)
    assert moved.shape == (1, 1 + grid[0] * grid[1], 4)
    torch.testing.assert_close(moved[:, 0], embedding[:, 0])
    if side * side != grid[0] * grid[1]:
        torch.testing.assert_close(moved, resample_position(embedding, grid, source=(side, side)))


def test_equal_token_counts_are_left_alone_as_published_unless_the_source_grid_is_known():
    embedding = torch.randn(1, 1 + 36, 4)
    assert resample_position(embedding, (4, 9)) is embedding
    assert not torch.equal(resample_position(embedding, (4, 9), source=(6, 6)), embedding)


def test_an_unknown_source_that_is_no_square_is_refused():
    with pytest.raises(SakError, match="12 patches is no square"):
        resample_position(torch.randn(1, 13, 4), (2, 2))


def test_a_student_with_other_teachers_is_refused_by_key():
    other = make_student(StudentConfig(image_size=(64, 64), stem=SMALL.size, teachers={"a": None, "c": 16}))
    with pytest.raises(SakError, match=r"paths\.b\.0"):
        transfer(make_student(SMALL), other)


def test_a_student_with_another_down_ratio_is_refused_by_shape():
    other = make_student(StudentConfig(image_size=(64, 64), stem=SMALL.size, teachers=SMALL.teachers, down_ratio=2))
    with pytest.raises(SakError, match=r"paths\.a\.0\.down\.weight is \(6, 24\) in the source and \(12, 24\) here"):
        transfer(make_student(SMALL), other)


def test_heads_for_tasks_that_the_target_has_not_are_reported_as_dropped():
    first = make_student(StudentConfig(image_size=(64, 64), stem=SMALL.size, teachers=SMALL.teachers, tasks={"sal": 2}))
    second = make_student(
        StudentConfig(image_size=(64, 64), stem=SMALL.size, teachers=SMALL.teachers, tasks={"depth": 1})
    )
    moved = transfer(first, second)
    assert any(key.startswith("heads.sal.") for key in moved.dropped)
    assert any(key.startswith("heads.depth.") for key in moved.untouched)
    assert moved.resampled == ()
