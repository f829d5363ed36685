import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import UsageError
from sak.teachers.preprocess import FixedSize, PaddedSquare, check_images, check_range
from sak.teachers.recipe import as_size

SIDES = st.integers(1, 700)


def test_a_448x576_image_fills_50_of_64_rows():
    assert PaddedSquare(side=1024, patch=16, crop=True).grid((448, 576)) == (50, 64)
    assert PaddedSquare(side=1024, patch=16, crop=False).grid((448, 576)) == (64, 64)


def test_padding_lies_at_the_bottom_and_the_right_and_is_zero():
    recipe = PaddedSquare(side=32, patch=16, crop=False)
    tall, wide = recipe.prepare(torch.ones(1, 3, 20, 10)), recipe.prepare(torch.ones(1, 3, 10, 20))
    assert torch.equal(tall, wide.transpose(2, 3))
    assert torch.equal(wide[..., :16, :], torch.ones(1, 3, 16, 32))
    assert torch.equal(wide[..., 16:, :], torch.zeros(1, 3, 16, 32))


@given(SIDES, SIDES, st.sampled_from([160, 512, 1024]))
def test_the_longest_side_becomes_the_square_and_crop_covers_the_image_and_no_more(height, width, side):
    whole, cropped = (PaddedSquare(side=side, patch=16, crop=crop) for crop in (False, True))
    resized = whole.resized((height, width))
    assert max(resized) == side
    assert min(resized) == max(int(min(height, width) * side / max(height, width) + 0.5), 1)
    for patches, length in zip(cropped.grid((height, width)), resized, strict=True):
        assert (patches - 1) * 16 < length <= patches * 16
    assert whole.grid((height, width)) == (side // 16, side // 16)


@given(SIDES, SIDES, st.sampled_from([14, 16]))
def test_a_fixed_size_has_whole_patches_alone(height, width, patch):
    rows, columns = FixedSize((height, width), (height, width), patch).grid((height, width))
    assert 0 <= height - rows * patch < patch
    assert 0 <= width - columns * patch < patch


def test_images_are_fed_as_they_are_unless_another_input_size_is_asked_for():
    images = torch.rand(1, 3, 24, 24)
    assert FixedSize((24, 24), (24, 24), 8).prepare(images) is images
    assert FixedSize((24, 24), (40, 48), 8).prepare(images).shape == (1, 3, 40, 48)
    assert FixedSize((24, 24), (40, 48), 8).grid((24, 24)) == (5, 6)


def test_images_of_another_size_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"images are 24x32, .* built for 32x32; build it with image_size=\(24, 32\)"):
        FixedSize((32, 32), (32, 32), 8).prepare(torch.rand(1, 3, 24, 32))


@pytest.mark.parametrize("bad", [0, -1, (3,), (1, 2, 3), (0, 4), (2.5, 2), "384"])
def test_sizes_are_one_or_two_positive_whole_numbers(bad):
    with pytest.raises(UsageError, match="image_size must be one positive number of pixels"):
        as_size(bad, "image_size")
    assert as_size(3, "x") == (3, 3)
    assert as_size([3, 4], "x") == (3, 4)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(3, 8, 8), r"must be \(B, 3, H, W\), got shape \(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), r"must be \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "got torch.uint8; divide bytes by 255"),
    ],
)
def test_what_is_no_batch_of_float_images_is_refused(images, said):
    with pytest.raises(UsageError, match=said):
        check_images(images)


@pytest.mark.parametrize("value", [255.0, -1.0, 1.01, float("nan"), float("inf")])
def test_values_outside_zero_to_one_are_refused(value):
    images = torch.rand(1, 3, 4, 4)
    check_range(images)
    images[0, 0, 0, 0] = value
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\]"):
        check_range(images)
