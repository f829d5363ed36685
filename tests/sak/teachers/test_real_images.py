"""B-size teachers with random weights on one real photograph, on the CPU."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sak.teachers import build_teacher


@pytest.fixture(scope="module")
def photograph(test_data):
    """The first image of the first shard, (1, 3, 384, 384) in [0, 1]."""
    shard = sorted((test_data / "imagenet-sample").glob("*.tar"))[0]
    with tarfile.open(shard) as archive:
        member = next(member for member in archive if member.name.endswith(".jpg"))
        content = archive.extractfile(member).read()
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((384, 384), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.slow
@pytest.mark.parametrize(("name", "grid"), [("dinov2-b", 27), ("clip-b", 24), ("clip-openai-b", 24), ("sam-b", 64)])
def test_a_b_size_teacher_runs_one_photograph(name, grid, photograph):
    teacher = build_teacher(name, weights="random:0")
    maps = teacher(photograph)
    assert [tuple(map_.shape) for map_ in maps] == [(1, 768, grid, grid)] * 4
    assert all(map_.isfinite().all() for map_ in maps)
    assert all(map_.std() > 0.1 for map_ in maps)
    assert maps.levels == (3, 6, 9, 12)
