"""Colours, stored predictions and panels."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pictures.colour import (
    IGNORED,
    colour,
    depth_limits,
    label_as_stored,
    meaning,
    stored,
    stored_normals,
    write_prediction,
)
from pipeline.pictures.panel import GAP, Compared, Tile, comparison, panel, prediction_panel
from sak.tasks import NYUD, PASCAL_CONTEXT


def example(task, size=(6, 8)):
    """A prediction as `read_output` gives it."""
    if task.colouring == "palette":
        return torch.arange(size[0] * size[1]).reshape(1, *size) % task.channels
    if task.colouring == "normals":
        return torch.nn.functional.normalize(torch.randn(1, 3, *size), dim=1)
    return torch.rand(1, *size) * (1 if task.colouring == "grey" else 8)


@pytest.mark.parametrize("task", [*NYUD, *PASCAL_CONTEXT], ids=lambda task: task.name)
def test_what_is_stored_reads_back_as_what_was_predicted(task, tmp_path):
    prediction = example(task)
    path = write_prediction(tmp_path, task, "sub/a", stored(task, prediction))
    assert path.parent == tmp_path / task.name / "sub"
    if path.suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), prediction[0].numpy())
        return
    with Image.open(path) as image:
        values = np.asarray(image)
    if task.colouring == "normals":
        np.testing.assert_allclose(values / 127.5 - 1, prediction[0].permute(1, 2, 0), atol=1 / 255 + 1e-6)
    elif task.colouring == "grey":
        np.testing.assert_array_equal(values, (prediction[0] * 255).to(torch.uint8).numpy())
    else:
        np.testing.assert_array_equal(values, prediction[0].numpy())


def test_classes_have_their_palettes_colours_and_ignored_pixels_one_of_their_own():
    task = PASCAL_CONTEXT["semseg"]
    label = np.array([[[15, 255, 0]]], np.float32)
    pixels = colour(task, label_as_stored(task, label))
    assert pixels.tolist() == [[list(task.palette[15]), list(IGNORED), [0, 0, 0]]]
    assert [name for _, name in meaning(task, label_as_stored(task, label)).classes] == [
        "background",
        "person",
        "no label",
    ]


@pytest.mark.parametrize("name", ["depth", "normals", "edge"])
def test_ignored_pixels_of_every_task_are_drawn_as_ignored(name):
    task = NYUD[name]
    label = np.full((task.channels, 1, 2), 255, np.float32)
    label[:, 0, 1] = 1
    pixels = colour(task, label_as_stored(task, label))
    assert tuple(pixels[0, 0]) == IGNORED
    assert tuple(pixels[0, 1]) != IGNORED


def test_depth_has_one_scale_for_label_and_prediction():
    near, far = np.full((2, 2), 1.0, np.float32), np.full((2, 2), 9.0, np.float32)
    limits = depth_limits(near, far)
    assert limits == (1.0, 9.0)
    assert colour(NYUD["depth"], near, limits).mean() > colour(NYUD["depth"], far, limits).mean()
    assert depth_limits(np.full((2, 2), np.nan, np.float32)) == (0.0, 1.0)


def test_unit_normals_are_the_colours_of_the_data_sets():
    assert stored_normals(np.array([0, 0, 1.0]).reshape(3, 1, 1)).tolist() == [[[128, 128, 255]]]


def test_a_panel_holds_every_picture_in_its_square():
    tiles = [Tile(np.full((h, w, 3), 10, np.uint8), "title") for h, w in ((10, 30), (30, 10), (1, 1), (5, 5))]
    sheet = np.asarray(panel(tiles, columns=3, side=60))
    assert sheet.shape[1] == GAP + 3 * (60 + GAP)
    assert (sheet == 10).all(2).sum() == 60 * 20 + 20 * 60 + 60 * 60 + 60 * 60


@pytest.mark.parametrize("table", [NYUD, PASCAL_CONTEXT], ids=lambda table: table.name)
def test_panels_and_comparisons_of_all_tasks_are_drawn(table):
    image = np.zeros((6, 8, 3), np.uint8)
    predictions = {task.name: stored(task, example(task)) for task in table}
    ones = np.ones((3, 6, 8), np.float32)
    labels = {task.name: label_as_stored(task, ones if task.colouring == "normals" else ones[:1]) for task in table}
    one = prediction_panel("a/very/long/name" * 9, image, table, predictions)
    both = comparison(table, [Compared("a", image, predictions, labels)])
    assert min(*one.size, *both.size) > 100
