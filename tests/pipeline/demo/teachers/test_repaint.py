import pytest
import torch

from pipeline.demo.teachers.repaint import CHANNELS, PLACED, Repaint, steepness
from pipeline.demo.teachers.sam import SamTraining
from pipeline.demo.teachers.towers import new_tower, vit_levels
from sak.teachers import build_teacher


def test_a_patch_is_painted_with_half_a_patch_around_it():
    images = torch.rand(2, 3, 48, 48)
    wanted = Repaint(8, 16).surroundings(images, 3).unflatten(2, (CHANNELS, 32, 32))
    assert wanted.shape == (2, 9, CHANNELS, 32, 32)
    assert torch.allclose(wanted[:, 4, :3], images[:, :, 8:40, 8:40])
    corner = wanted[:, 0, :3]
    assert torch.allclose(corner[..., 8:, 8:], images[:, :, :24, :24])
    assert torch.allclose(corner[..., :8, 8:], images[:, :, :1, :24].expand(-1, -1, 8, -1))


@pytest.mark.parametrize(("patch", "side", "seen"), [(16, 8, 16), (14, 7, 13)])
def test_surroundings_may_be_painted_smaller_than_they_are(patch, side, seen):
    images = torch.rand(1, 3, 2 * patch, 2 * patch)
    wanted = Repaint(8, side).surroundings(images, 2).unflatten(2, (CHANNELS, seen, seen))
    margin = side // 2
    middle = wanted[0, 0, :3, margin : margin + side, margin : margin + side]
    assert torch.allclose(middle, torch.nn.functional.avg_pool2d(images[0, :, :patch, :patch], 2), atol=1e-6)


def test_only_edges_are_steep():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 2.0
    steep = steepness(images)[0, 0]
    assert torch.allclose(steep[:, 3:5], torch.full((8, 2), 2.0), atol=1e-3)
    assert steep[:, :3].max() < 0.01
    assert steep[:, 5:].max() < 0.01


def test_tokens_that_know_their_place_lose_less():
    repaint = Repaint(2, 4)
    for head, place in zip(repaint.heads, repaint.places, strict=True):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        place.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    images = torch.zeros(1, 3, 8, 8)
    told = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])[None]  # row, then column
    with torch.no_grad():
        found, lost = (float(repaint([tokens] * 4, images, 2)) for tokens in (told, told.flip(-1)))
    assert found < 1e-4  # what Sobel leaves on a plain image
    assert lost == pytest.approx(found + PLACED * (0.5 * 1.0**2) / 2)


def test_every_level_has_a_share_in_the_repainting():
    repaint = Repaint(8, 8)
    levels = [torch.randn(2, 4, 8, requires_grad=True) for _ in range(4)]
    repaint(levels, torch.rand(2, 3, 16, 16), 2).backward()
    assert all(float(level.grad.abs().max()) > 0 for level in levels)


@pytest.mark.parametrize("name", ["dino", "clip"])
def test_the_levels_are_those_that_the_teacher_gives(name):
    teacher = build_teacher(f"demo/{name}", weights="random:5", image_size=64)
    images = torch.rand(1, 3, 64, 64)
    side = teacher.grid()[0] * teacher.tower.patch
    with torch.no_grad():
        levels = vit_levels(new_tower(name, 5), ((images - teacher.mean) / teacher.std)[..., :side, :side])
    for tokens, wanted in zip(levels, teacher(images).maps, strict=True):
        assert torch.allclose(tokens[:, 1:], wanted.flatten(2).transpose(1, 2), atol=1e-4)


def test_so_are_those_of_sam():
    model = SamTraining(5)
    teacher = build_teacher("demo/sam", weights="random:5", image_size=96, input_size=192)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        levels = model.levels((images - teacher.mean) / teacher.std)
    for level, wanted in zip(levels, teacher(images).maps, strict=True):
        assert torch.allclose(level.permute(0, 3, 1, 2), wanted, atol=1e-4)
