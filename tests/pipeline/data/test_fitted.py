"""Images as a network takes them, and outputs at the images' own sizes."""

import numpy as np
import pytest
import torch

from pipeline.data.augment import for_evaluation
from pipeline.data.fitted import at_own_size, fit, own_labels, read_at_own_size, valid_pixels
from pipeline.data.sample import TaskSample
from sak.tasks import NYUD


def image(height, width):
    return np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("own", [(30, 41), (48, 64), (1, 1), (47, 64)])
def test_an_image_that_fits_is_the_padded_one_of_the_evaluation_transform(own):
    pixels = image(*own)
    fitted = fit(pixels, (48, 64))
    prepared = for_evaluation(TaskSample("a", pixels, {}, own), (48, 64))
    assert torch.equal(torch.from_numpy(fitted.image), prepared.image)
    assert fitted.window == prepared.window
    assert fitted.scale == 1


@pytest.mark.parametrize("own", [(96, 64), (49, 64), (500, 3), (3, 5000), (200, 200)])
def test_a_larger_image_is_shrunk_with_its_ratio_and_comes_back_at_its_own_size(own):
    fitted = fit(image(*own), (48, 64))
    top, _, height, width = fitted.window
    assert height == 48 or width == 64
    assert height / own[0] == pytest.approx(fitted.scale, rel=0.02) or height == 1
    outside = np.delete(fitted.image, np.s_[top : top + height], axis=1)
    assert not outside.any()
    assert at_own_size(torch.zeros(1, 5, 48, 64, dtype=torch.bfloat16), fitted).shape == (1, 5, *own)


def test_the_output_of_an_image_that_fits_is_cut_and_nothing_else():
    output = torch.randn(2, 3, 48, 64)
    fitted = fit(image(20, 30), (48, 64))
    assert torch.equal(at_own_size(output, fitted), output[:, :, 14:34, 17:47])


def test_labels_are_255_where_there_is_nothing_to_compare_with():
    labels = {
        "semseg": np.array([[[3], [255]]], np.float32),
        "depth": np.array([[[0], [2.5]]], np.float32),
        "normals": np.array([[[0, 0, 0], [0, 0, 1]]], np.float32),
        "human_parts": np.array([[[0], [255]]], np.float32),
    }
    own = own_labels(TaskSample("a", image(1, 2), labels, (1, 2)))
    assert {task: valid_pixels(label) for task, label in own.items()} == {
        "semseg": 1,
        "depth": 1,
        "normals": 1,
        "human_parts": 0,
    }
    assert own["semseg"].dtype == np.uint8


@pytest.mark.parametrize("task", list(NYUD), ids=lambda task: task.name)
def test_a_large_image_read_in_bands_is_as_read_at_once(task, monkeypatch):
    """Rounding alone, so a class may differ where two are as good as equal."""
    small = fit(image(230, 310), (48, 64))
    output = torch.randn(1, task.channels, 48, 64, generator=torch.Generator().manual_seed(0))
    whole = read_at_own_size(task, output, small)
    monkeypatch.setattr("pipeline.data.fitted.MOST_VALUES", 310 * task.channels * 7)
    bands = read_at_own_size(task, output, small)
    assert bands.shape == whole.shape
    assert bands.dtype == whole.dtype
    near = torch.isclose(bands.double(), whole.double(), atol=1e-5)
    assert near.double().mean() > 0.999
