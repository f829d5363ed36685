import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer_sam import get_rel_pos

from sak.errors import SakError
from sak.teachers.positions import grid_of, resample_map, resample_relative, resample_tokens


@pytest.mark.parametrize("new", [(4, 7), (9, 3), (5, 5), (6, 4)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_resampled_as_timm_does(new, prefix):
    embedding = torch.rand(1, prefix + 24, 8, dtype=torch.float32)
    ours = resample_tokens(embedding, prefix=prefix, old=(6, 4), new=new)
    theirs = resample_abs_pos_embed(embedding, list(new), [6, 4], num_prefix_tokens=prefix)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(ours[:, :prefix], embedding[:, :prefix])


def test_a_grid_of_equal_count_and_other_sides_is_resampled_all_the_same():
    embedding = torch.rand(1, 36, 4)
    turned = resample_tokens(embedding, prefix=0, old=(6, 6), new=(4, 9))
    assert turned.shape == embedding.shape
    assert not torch.allclose(turned, embedding)


def test_sams_map_is_resampled_without_antialias():
    embedding = torch.rand(1, 8, 8, 4)
    ours = resample_map(embedding, (5, 5))
    plain, smooth = (
        F.interpolate(embedding.permute(0, 3, 1, 2), size=(5, 5), mode="bicubic", antialias=antialias)
        for antialias in (False, True)
    )
    assert torch.equal(ours, plain.permute(0, 2, 3, 1))
    assert not torch.allclose(ours, smooth.permute(0, 2, 3, 1))
    assert resample_map(embedding, (8, 8)) is embedding


@pytest.mark.parametrize("side", [3, 8, 11])
def test_relative_tables_are_resampled_as_the_libraries_do(side):
    table = torch.rand(15, 4)
    ours = resample_relative(table, 2 * side - 1)
    pairs = torch.arange(side)[:, None] - torch.arange(side)[None] + side - 1
    torch.testing.assert_close(ours[pairs], get_rel_pos(side, side, table), atol=1e-6, rtol=0)


def test_the_grid_is_the_native_one_where_it_fits_else_a_square():
    assert grid_of(36, (4, 9), "x") == (4, 9)
    assert grid_of(36, (7, 7), "x") == (6, 6)
    with pytest.raises(SakError, match="x: 35 position embeddings form neither"):
        grid_of(35, (7, 7), "x")
