import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from scipy.stats import binomtest, ks_2samp
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from pipeline.images.source import BadImage, ReplayError
from pipeline.images.views import View, ViewPolicy, make_view, pixel_crc, render, replay

RANDOM = ViewPolicy(kind="random_resized_crop", size=384)
SIDES = st.integers(1, 3000)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@given(st.text(max_size=20), st.integers(0, 10_000), SIDES, SIDES, st.integers(0, 2**63 - 1))
def test_a_view_lies_inside_its_image_and_is_the_same_whenever_it_is_made(key, number, width, height, seed):
    policy = ViewPolicy(kind="random_resized_crop", size=(32, 48), seed=seed)
    view = make_view(policy, key, number, (width, height))
    left, top, right, bottom = view.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (view.number, view.size, view.scaled) == (number, (32, 48), None)
    assert view == make_view(policy, key, number, (width, height))


@given(
    SIDES, SIDES, st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), st.tuples(st.floats(0.1, 10), st.floats(0.1, 10))
)
def test_scale_and_ratio_bound_every_box_that_is_not_the_fallback(width, height, scale, ratio):
    scale, ratio = tuple(sorted(scale)), tuple(sorted(ratio))
    policy = ViewPolicy(kind="random_resized_crop", size=8, scale=scale, ratio=ratio)
    left, top, right, bottom = make_view(policy, "k", 0, (width, height)).box
    w, h = right - left, bottom - top
    centred = (left, top) == ((width - w) // 2, (height - h) // 2)
    slack_area, slack_ratio = (w + 1) * (h + 1), (w + 1) / max(h - 1, 0.5)
    within = slack_area >= scale[0] * width * height and (w - 1) * (h - 1) <= scale[1] * width * height
    assert centred or (within and slack_ratio >= ratio[0] and max(w - 1, 0.5) / (h + 1) <= ratio[1])


def test_more_views_append_and_change_none_there_are():
    views = [make_view(RANDOM, "n01440764", number, (500, 375)) for number in range(50)]
    assert len({view.box for view in views}) == 50
    assert views[:4] == [make_view(RANDOM, "n01440764", number, (500, 375)) for number in range(4)]


@pytest.mark.parametrize(
    ("key", "number", "seed", "box", "flip"),
    [
        ("n01440764", 0, 0, (80, 15, 474, 329), False),
        ("n01440764", 1, 0, (243, 85, 500, 297), False),
        ("n01440764", 2, 0, (8, 32, 406, 356), True),
        ("n01440764", 0, 1, (163, 130, 404, 333), False),
        ("ключ/é", 7, 2**40, (81, 39, 347, 275), False),
    ],
)
def test_views_of_these_keys_are_pinned_because_caches_hold_them(key, number, seed, box, flip):
    view = make_view(RANDOM.model_copy(update={"seed": seed}), key, number, (500, 375))
    assert (view.box, view.flip) == (box, flip)


def their_boxes(size, count, scale, ratio):
    torch.manual_seed(5)
    image = Image.new("RGB", size)
    drawn = [transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    return np.array([(left, top, left + w, top + h) for top, left, h, w in drawn])


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((500, 375), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((40, 64), (0.2, 0.6), (0.5, 2.0)),
        ((64, 300), (0.3, 1.0), (3 / 4, 4 / 3)),
        ((2000, 56), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((7, 9), (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_follow_torchvisions_law(size, scale, ratio):
    count = 4000
    theirs = their_boxes(size, count, list(scale), list(ratio))
    policy = ViewPolicy(kind="random_resized_crop", size=8, scale=scale, ratio=ratio, seed=3)
    ours = np.array([make_view(policy, f"sample-{number}", number % 3, size).box for number in range(count)])
    for name, of in {
        "left": lambda box: box[:, 0],
        "top": lambda box: box[:, 1],
        "width": lambda box: box[:, 2] - box[:, 0],
        "height": lambda box: box[:, 3] - box[:, 1],
        "area": lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        "ratio": lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        "right edge": lambda box: box[:, 2],
        "left + top": lambda box: box[:, 0] + box[:, 1],
        "left x width": lambda box: box[:, 0] * (box[:, 2] - box[:, 0]),
    }.items():
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name


def test_an_image_too_long_for_ten_tries_gets_torchvisions_middle():
    for size in [(3000, 10), (10, 3000), (999, 2)]:
        view = make_view(ViewPolicy(kind="random_resized_crop", size=8, scale=(0.9, 1.0)), "k", 0, size)
        expected = their_boxes(size, 1, [0.9, 1.0], [3 / 4, 4 / 3])[0]
        assert view.box == tuple(expected)


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.2, 1.0])
def test_flips_come_with_their_probability_and_independently_of_the_box(probability):
    policy = ViewPolicy(kind="random_resized_crop", size=8, hflip=probability)
    views = [make_view(policy, f"k{number}", number % 7, (500, 375)) for number in range(8000)]
    flips = np.array([view.flip for view in views])
    assert binomtest(int(flips.sum()), len(flips), probability).pvalue > 1e-3
    if 0 < probability < 1:
        left = np.array([view.box[0] for view in views])
        assert ks_2samp(left[flips], left[~flips]).pvalue > 1e-3


def test_numbers_seeds_and_keys_draw_independently():
    by = {
        "number": [make_view(RANDOM, "k", number, (500, 375)) for number in range(3000)],
        "seed": [make_view(RANDOM.model_copy(update={"seed": s}), "k", 0, (500, 375)) for s in range(3000)],
        "key": [make_view(RANDOM, str(number), 0, (500, 375)) for number in range(3000)],
    }
    areas = {name: [(v.box[2] - v.box[0]) * (v.box[3] - v.box[1]) for v in views] for name, views in by.items()}
    assert ks_2samp(areas["number"], areas["seed"]).pvalue > 1e-3
    assert ks_2samp(areas["number"], areas["key"]).pvalue > 1e-3
    assert abs(np.corrcoef(areas["number"][:-1], areas["number"][1:])[0, 1]) < 0.07
    assert max(Counter(view.box for view in by["number"]).values()) < 5


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_pixels_of_a_random_view_equal_torchvisions_resized_crop(width, height, h, w, number):
    image = picture(width, height, number)
    policy = ViewPolicy(kind="random_resized_crop", size=(h, w))
    view = make_view(policy, "key", number, image.size)
    left, top, right, bottom = view.box
    theirs = tv.resized_crop(image, top, left, bottom - top, right - left, [h, w], InterpolationMode.BILINEAR)
    theirs = tv.hflip(theirs) if view.flip else theirs
    ours = render(image, view)
    assert ours.shape == (h, w, 3)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, np.asarray(theirs))


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 40))
def test_center_crop_equals_torchvisions_resize_then_center_crop(width, height, side):
    image = picture(width, height)
    evaluation = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])
    view = make_view(ViewPolicy(kind="center_crop", size=side), "k", 0, image.size)
    assert view.box == (0, 0, width, height)
    assert np.array_equal(render(image, view), np.asarray(evaluation(image)))


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 40), st.integers(1, 40))
def test_center_crop_covers_a_size_that_is_no_square(width, height, h, w):
    view = make_view(ViewPolicy(kind="center_crop", size=(h, w)), "k", 0, (width, height))
    scaled = view.scaled or view.size
    assert scaled[0] >= h
    assert scaled[1] >= w
    assert scaled[0] == h or scaled[1] == w
    assert render(picture(width, height), view).shape == (h, w, 3)


def test_resize_takes_the_whole_image_and_does_not_keep_its_ratio():
    image = picture(66, 50)
    view = make_view(ViewPolicy(kind="resize", size=(48, 40)), "k", 3, image.size)
    assert view == View(3, (0, 0, 66, 50), False, (48, 40))
    assert np.array_equal(render(image, view), np.asarray(transforms.Resize((48, 40))(image)))


@pytest.mark.parametrize("side", [12, 48])
def test_crops_are_cut_before_they_are_scaled(side):
    image, view = picture(66, 50), View(0, (5, 4, 45, 47), False, (side, side))
    across_the_edges = image.resize((side, side), Image.Resampling.BILINEAR, box=view.box)
    assert not np.array_equal(render(image, view), np.asarray(across_the_edges))


def test_pixels_equal_the_published_transforms(golden):
    cases = json.loads((golden / "sak/08_transforms.json").read_text())["cases"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with safe_open(golden / "sak/08_transforms.safetensors", "np") as tensors:
        image = Image.fromarray(tensors.get_tensor("in.p.image").astype(np.uint8))
        views = {"imagenet.val": make_view(ViewPolicy(kind="resize", size=48), "k", 0, image.size)}
        for name, case in cases.items():
            if name.startswith("imagenet.train"):
                top, left, height, width = case["i_j_h_w"]
                views[name] = View(0, (left, top, left + width, top + height), case["flip"], tuple(case["size"]))
        assert len(views) == 4
        for name, view in views.items():
            normalised = (render(image, view) / 255 - mean) / std
            np.testing.assert_allclose(normalised.transpose(2, 0, 1), tensors.get_tensor(name), atol=2e-6, rtol=0)


def test_a_flip_mirrors_last():
    image = picture(60, 40)
    view = View(0, (3, 5, 43, 33), False, (24, 20))
    mirrored = View(0, (3, 5, 43, 33), True, (24, 20))
    assert np.array_equal(render(image, mirrored), render(image, view)[:, ::-1])


def test_replaying_proves_the_pixels_or_names_the_sample():
    image, view = picture(60, 40), View(2, (3, 5, 43, 33), True, (24, 20))
    crc = pixel_crc(render(image, view))
    assert pixel_crc(replay(image, view, crc, key="n01/a")) == crc
    with pytest.raises(ReplayError, match=r"'n01/a', view 2, box \(3, 5, 43, 33\).* recorded") as failure:
        replay(picture(60, 40, seed=1), view, crc, key="n01/a")
    assert "\n" not in str(failure.value)


def test_the_crc_sees_every_pixel_and_any_memory_layout():
    pixels = render(picture(16, 16), View(0, (0, 0, 16, 16), False, (16, 16)))
    assert pixel_crc(pixels[:, ::-1]) == pixel_crc(np.ascontiguousarray(pixels[:, ::-1])) != pixel_crc(pixels)
    for place in [0, 400, pixels.size - 1]:
        changed = pixels.copy()
        changed.reshape(-1)[place] ^= 1
        assert pixel_crc(changed) != pixel_crc(pixels)
    assert pixel_crc(np.frombuffer(b"123456789", np.uint8).reshape(1, 3, 3)) == 0xE3069283  # CRC32C's check value


def test_views_outside_of_the_image_or_of_other_modes_are_refused():
    with pytest.raises(ValueError, match="inside"):
        render(picture(10, 10), View(0, (0, 0, 11, 10), False, (4, 4)))
    with pytest.raises(ValueError, match="RGB"):
        render(Image.new("L", (10, 10)), View(0, (0, 0, 10, 10), False, (4, 4)))
    with pytest.raises(ValueError, match="no such view"):
        make_view(RANDOM, "k", -1, (10, 10))


def test_a_thread_of_pixels_is_not_scaled_into_a_giant():
    image = Image.new("RGB", (60_000, 1))
    with pytest.raises(BadImage, match="too many"):
        render(image, make_view(ViewPolicy(kind="center_crop", size=384), "k", 0, image.size))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "random_crop", "size": 8}, "kind"),
        ({"kind": "resize", "size": 8, "hflp": 0.5}, "hflp"),
        ({"kind": "resize", "size": 0}, "size"),
        ({"kind": "resize", "size": True}, "size"),
        ({"kind": "resize", "size": (8, 8, 8)}, "size"),
        ({"kind": "resize", "size": 8.5}, "size"),
        ({"kind": "center_crop", "size": 8, "scale": (0.1, 1)}, "scale belongs to random_resized_crop"),
        ({"kind": "random_resized_crop", "size": 8, "scale": (1, 0.1)}, "least, most"),
        ({"kind": "random_resized_crop", "size": 8, "scale": (0, 0.1)}, "scale"),
        ({"kind": "random_resized_crop", "size": 8, "scale": (0.5, 2)}, "at most 1"),
        ({"kind": "random_resized_crop", "size": 8, "ratio": (0.5, math.inf)}, "ratio"),
        ({"kind": "random_resized_crop", "size": 8, "hflip": 1.5}, "hflip"),
        ({"kind": "random_resized_crop", "size": 8, "seed": -1}, "seed"),
        ({"kind": "random_resized_crop", "size": 8, "seed": 0.5}, "seed"),
    ],
)
def test_policies_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ViewPolicy(**fields)


def test_a_policy_says_its_defaults_and_comes_back_from_json():
    policy = ViewPolicy(kind="random_resized_crop", size=384)
    assert policy.model_dump(mode="json") == {
        "kind": "random_resized_crop",
        "size": [384, 384],
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "hflip": 0.5,
        "seed": 0,
    }
    assert ViewPolicy.model_validate_json(policy.model_dump_json()) == policy
    centre = ViewPolicy(kind="center_crop", size=[224, 192])
    assert (centre.hflip, centre.scale, centre.size) == (0.0, None, (224, 192))
    assert ViewPolicy.model_validate(centre.model_dump(mode="json")) == centre
