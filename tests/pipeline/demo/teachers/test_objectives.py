import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.demo.teachers.captions import REGIONS
from pipeline.demo.teachers.clip import _shares
from pipeline.demo.teachers.crops import MEAN, STD, CropPlan, SceneBatches, cut, random_of
from pipeline.demo.teachers.dino import _masks, nearest_places
from pipeline.demo.teachers.sam import _best_f, _edges
from pipeline.demo.teachers.stage import OBJECTIVES
from pipeline.demo.teachers.towers import new_tower, vit_tokens
from sak.teachers import build_teacher

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_falls_when_one_batch_is_learnt_by_heart(name, pool):
    torch.manual_seed(0)
    model = OBJECTIVES[name](0)
    indices = np.flatnonzero(pool.subjects() >= 0)
    batch = SceneBatches(pool, indices, model.plans(), 4, 0, CPU).batch(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(8):
        torch.manual_seed(1)  # the same masks and points
        loss = model(batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    held_out = cut(pool, indices[:6], {"whole": model.held_out_plan()}, random_of(0, "x", 0), CPU)
    with torch.no_grad():
        assert all(0 <= value <= 1 for value in model.measure(held_out).values())
        assert model.embed(held_out.tensors["whole"]).isfinite().all()


@pytest.mark.parametrize("name", ["dino", "clip", "stem"])
def test_training_sees_the_tokens_that_the_teacher_gives(name):
    teacher = build_teacher(f"demo/{name}", weights="random:5", image_size=128)
    images = torch.rand(2, 3, 128, 128)
    side = teacher.grid()[0] * teacher.tower.patch
    tokens = vit_tokens(new_tower(name, 5), ((images - teacher.mean) / teacher.std)[..., :side, :side])
    wanted = teacher(images)[12].flatten(2).transpose(1, 2)
    assert torch.allclose(tokens[:, 1:], wanted, atol=1e-4)


def test_sam_training_sees_the_map_that_the_teacher_gives():
    model = OBJECTIVES["sam"](5)
    teacher = build_teacher("demo/sam", weights="random:5", image_size=96, input_size=192)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        found = model.features((images - teacher.mean) / teacher.std)
    assert torch.allclose(found, teacher(images)[12], atol=1e-4)


def test_the_average_follows_the_student_and_takes_no_gradient(pool):
    model = OBJECTIVES["dino"](0)
    assert model.tower is model.teacher.tower
    assert not any(parameter.requires_grad for parameter in model.tower.parameters())
    with torch.no_grad():
        model.student.tower.cls_token.add_(1.0)
    before = model.teacher.tower.cls_token.clone()
    model._follow()
    assert torch.allclose(model.teacher.tower.cls_token - before, torch.full_like(before, 0.02), atol=1e-5)


def test_a_patch_is_found_at_its_place_in_another_crop():
    whole, mirrored, corner = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, -1.0], [0.5, 0.5, 0.5, 0.5]
    match, there = nearest_places(torch.tensor([whole, whole, corner]), torch.tensor([mirrored, corner, whole]), 4)
    assert there[0].all()
    assert match[0].tolist()[:4] == [3, 2, 1, 0]
    assert there[1].nonzero().flatten().tolist() == [10, 11, 14, 15]
    assert match[1, there[1]].tolist() == [5, 7, 13, 15]
    assert there[2].all()
    assert match[2].tolist()[:4] == [10, 10, 11, 11]


def test_places_say_what_a_crop_shows(pool):
    plan = CropPlan(40, (0.2, 0.6), count=8, jitter=0.0, places=True)
    batch = cut(pool, np.arange(1), {"crop": plan}, random_of(0, "x", 0), CPU)
    scene = torch.from_numpy(pool[0]["rgb"].copy()).permute(2, 0, 1).float() / 255
    for image, (top, left, height, width) in zip(batch.tensors["crop"], batch.tensors["crop.places"], strict=True):
        ends = [round(float(end) * scene.shape[-1]) for end in (top, top + height, left, left + width)]
        shown = scene[:, ends[0] : ends[1], min(ends[2:]) : max(ends[2:])]
        shown = F.interpolate(shown[None], size=(40, 40), mode="bilinear", align_corners=False, antialias=True)[0]
        shown = shown.flip(-1) if width < 0 else shown
        colours = torch.tensor(MEAN).view(3, 1, 1) + image * torch.tensor(STD).view(3, 1, 1)
        assert torch.allclose(colours, shown, atol=1e-5)


def test_every_second_crop_has_hidden_patches():
    hidden = _masks(8, 36, CPU).float().mean(1)
    assert (hidden[::2] == 0).all()
    assert ((hidden[1::2] > 0.25) & (hidden[1::2] < 0.65)).all()


def test_only_crops_of_which_nothing_is_hidden_are_repainted():
    model = OBJECTIVES["dino"](0)
    levels = tuple(torch.randn(4, 1 + 9, 96, requires_grad=True) for _ in range(4))
    model._repaint(levels, torch.rand(4, 3, 42, 42)).backward()
    hidden = _masks(4, 9, CPU).any(1)
    for level in levels:
        told = level.grad[:, 1:].flatten(1).abs().amax(1) > 0
        assert told.tolist() == (~hidden).tolist()
        assert not level.grad[:, 0].any()


def test_boundaries_that_are_drawn_right_have_an_f_of_one_and_a_pixel_of_slack():
    ids = torch.zeros(1, 32, 32, dtype=torch.long)
    ids[:, 8:20, 8:20] = 1
    edges = _edges(ids)
    assert _best_f(edges, edges) == pytest.approx(1)
    assert _best_f(edges.roll(1, dims=2), edges) == pytest.approx(1)
    assert _best_f(edges.roll(4, dims=2), edges) < 0.8


def test_a_region_has_the_patches_that_it_covers():
    regions = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    regions[0, 0, :, 4:] = 2
    regions[0, 1, :2] = REGIONS + 1
    shares = _shares(regions, 4).view(2 * REGIONS, 2, 2)
    assert shares[1].tolist() == [[0, 1], [0, 1]]
    assert shares[REGIONS].tolist() == [[0.5, 0.5], [0, 0]]
    assert shares.sum() == 3
