from hashlib import sha256

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.quantizers import Rotation


@pytest.mark.parametrize(
    ("width", "factors"),
    [
        (768, (12, 64)),
        (384, (12, 32)),
        (1024, (32, 32)),
        (1280, (20, 64)),
        (1152, (36, 32)),
        (48, (12, 4)),
        (8, (2, 4)),
    ],
)
def test_widths_of_real_teachers_rotate_by_hadamard_matrices(width, factors):
    rotation = Rotation(width)
    assert (rotation.left.shape[0], rotation.right.shape[0]) == factors
    flat = torch.kron(rotation.left, rotation.right).abs()
    torch.testing.assert_close(flat, torch.full_like(flat, width**-0.5))


@given(st.integers(1, 130))
def test_every_width_has_a_rotation_that_keeps_lengths_and_can_be_undone(width):
    rotation = Rotation(width)
    values = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(width))
    rotated = rotation(values)
    torch.testing.assert_close(rotated.norm(dim=-1), values.norm(dim=-1))
    torch.testing.assert_close(rotation.inverse(rotated), values, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 130))
def test_no_channel_keeps_more_than_its_share_twice_over(width):
    rotation = Rotation(width)
    assert (torch.kron(rotation.left, rotation.right).abs().max() ** 2) * width < 2.001


def test_a_constant_token_does_not_become_a_spike():
    rotated = Rotation(768)(torch.ones(768))
    assert rotated.abs().max() < 4.5


def test_the_rotation_of_768_is_pinned():
    """Stored int4 features of this width can be read with this rotation alone."""
    rotation = Rotation(768)
    data = b"".join(part.numpy().tobytes() for part in (rotation.left, rotation.right, rotation.signs))
    assert sha256(data).hexdigest()[:16] == "447ee528db842331"


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one channel"):
        Rotation(0)
