"""Augmentation against the reference: every transform alone, with its draws replayed, then the whole pipeline."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.data import augment
from pipeline.data.augment import Photometric
from pipeline.data.sample import TaskSample

SEEDS = range(8)
PIPES = [(dataset, seed) for dataset in ("pascalcontext", "nyud") for seed in (11, 12, 13)]


@pytest.fixture(scope="module")
def arrays(golden):
    return load_file(golden / "sak/08_transforms.safetensors")


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "sak/08_transforms.json").read_text())["cases"]


def sample(arrays, which: str, **replaced) -> TaskSample:
    labels = {
        key.split(".")[2]: value
        for key, value in arrays.items()
        if key.startswith(f"in.{which}.") and not key.endswith("image")
    }
    image = arrays[f"in.{which}.image"]
    return TaskSample("x", image, labels | replaced, image.shape[:2])


@pytest.mark.parametrize("which", ["p", "n"])
@pytest.mark.parametrize("factor", ["0.5", "0.7321", "1.0", "1.3713", "2.0"])
def test_scaling_is_equal(arrays, which, factor):
    scaled = augment.scale(sample(arrays, which), float(factor))
    found = {"image": scaled.image} | dict(scaled.labels)
    expected = {k.rsplit(".", 1)[1]: v for k, v in arrays.items() if k.startswith(f"scale.{which}.{factor}.")}
    assert expected
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["ok", "retry", "allfail", "noratio", "small", "exact"])
def test_cropping_takes_the_same_place(arrays, cases, case):
    recorded = cases[f"crop.{case}"]
    whole = sample(arrays, recorded["in"][0])
    if case == "allfail":
        semseg = whole.labels["semseg"]
        whole = sample(arrays, "p", semseg=np.where(semseg != 255, np.float32(4), semseg))
    if case == "noratio":  # no checks are made where semseg is not loaded
        whole = TaskSample("x", whole.image, {}, whole.size)
    drawn = [place for place in recorded["locs_drawn_in_order [h0,h1,w0,w1]"] if place]
    found = augment.crop(whole, tuple(recorded["size"]), iter([(place[0], place[2]) for place in drawn]))
    np.testing.assert_array_equal(found.image, arrays[f"crop.{case}.image"])
    if found.labels:
        np.testing.assert_array_equal(found.labels["semseg"], arrays[f"crop.{case}.semseg"])


@pytest.mark.parametrize("which", ["p", "n"])
def test_flipping_is_equal(arrays, which):
    flipped = augment.flip(sample(arrays, which))
    np.testing.assert_array_equal(flipped.image, arrays[f"flip.{which}.image"])
    np.testing.assert_array_equal(flipped.labels["normals"], arrays[f"flip.{which}.normals"])


def photometric(draws: list) -> Photometric:
    """A recorded list of draws as ours; every coin below one half is followed by its value."""
    values = [draw[2] for draw in draws]
    contrast_first = values.pop(0) < 0.5
    steps = ["brightness", *(["contrast"] if contrast_first else []), "saturation", "hue"]
    drawn: dict = {"contrast_first": contrast_first}
    for step in [*steps, *([] if contrast_first else ["contrast"])]:
        if values.pop(0) < 0.5:
            drawn[step] = int(values.pop(0)) if step == "hue" else values.pop(0)
    assert not values
    return Photometric(**drawn)


@pytest.mark.parametrize("seed", SEEDS)
def test_photometric_distortion_is_equal_to_the_last_grey_level(arrays, cases, seed):
    draw = photometric(cases[f"photo.seed{seed}"]["draws_in_order"])
    found = augment.distort(arrays["in.p.image"], draw)
    np.testing.assert_array_equal(found.astype(np.uint8), arrays[f"photo.seed{seed}.image"])


def test_normalising_is_equal(arrays):
    np.testing.assert_allclose(augment.normalise(arrays["in.p.image"]), arrays["normalize.p.image"], atol=1e-6)


@pytest.mark.parametrize("which", ["p", "n", "p_mixed"])
def test_padding_and_ignoring_are_equal(arrays, cases, which):
    size = tuple(cases["pad"][which])
    whole = sample(arrays, which[0])
    prepared = augment.for_evaluation(whole, size)
    for name, label in prepared.labels.items():
        key = f"padignore.{which}.{name}"
        expected = arrays[key if key in arrays else f"pad.{which}.{name}"]
        np.testing.assert_array_equal(label.numpy().transpose(1, 2, 0), expected, err_msg=name)
    top, left, height, width = prepared.window
    inside = prepared.image[:, top : top + height, left : left + width].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(inside, augment.normalise(whole.image))


def test_parts_of_an_image_without_people_are_ignored_whole(arrays):
    found = augment.mark_ignored({"human_parts": arrays["ignore.hp_no_human.in"]})
    np.testing.assert_array_equal(found["human_parts"], arrays["ignore.hp_no_human.out"])


@pytest.mark.parametrize(("dataset", "seed"), PIPES)
def test_the_whole_training_pipeline_is_equal(arrays, cases, dataset, seed):
    recorded = cases[f"pipe.{dataset}.train.seed{seed}"]
    draws = list(recorded["draws_in_order"])
    size = tuple(recorded["size"])
    done = augment.scale(sample(arrays, recorded["in"][-1]), draws.pop(0)[2])
    done = augment.crop(done, size, _places(draws))
    if draws.pop(0)[2] < 0.5:
        done = augment.flip(done)
    done = TaskSample("x", augment.distort(done.image, photometric(draws)), done.labels, done.size)
    found = augment.for_evaluation(done, size)
    prefix = f"pipe.{dataset}.train.seed{seed}."
    for name, value in {"image": found.image, **found.labels}.items():
        np.testing.assert_allclose(value.numpy(), arrays[prefix + name], atol=1e-6, rtol=0, err_msg=name)


def _places(draws: list):
    while True:
        yield int(draws.pop(0)[2]), int(draws.pop(0)[2])


@pytest.mark.parametrize("dataset", ["pascalcontext", "nyud"])
def test_the_evaluation_pipeline_is_equal(arrays, dataset):
    whole = sample(arrays, dataset[0])
    prefix = f"pipe.{dataset}.val."
    expected = {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
    size = {"pascalcontext": (64, 64), "nyud": (56, 72)}[dataset]
    found = augment.for_evaluation(whole, size)
    for name, value in expected.items():
        ours = found.image if name == "image" else found.labels[name]
        np.testing.assert_allclose(ours.numpy(), value, atol=1e-6, rtol=0, err_msg=name)
