"""Probes: frozen teachers under heads, and how teachers come back as they were."""

import pytest
import torch

from sak.checkpoints.probe_store import fill_heads, load_probe, save_probe
from sak.errors import SakError, UsageError
from sak.teachers import TeacherRecipe, build_teacher
from sak.variants.frozen import Probe, ProbeConfig

TINY = {"embed_dim": 16, "depth": 4, "num_heads": 2}
SAM = {"model": "timm/samvit_base_patch16.sa1b", "input_size": (64, 64), "overrides": {**TINY, "window_size": 2}}
CLIP = {"model": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "overrides": TINY}


def source(**more):
    return TeacherRecipe("clip", **{**CLIP, "weights": "random:3", **more})


def probe_of(teacher, image_size=(32, 48), tasks=None):
    config = ProbeConfig(teacher, image_size, tasks or {"semseg": 5, "normals": 3})
    torch.manual_seed(0)
    return Probe(config, config.build_teacher())


def images(height=32, width=48):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("teacher", [source(), TeacherRecipe("sam", weights="random:1", **SAM)], ids=["clip", "sam"])
def test_predictions_have_the_images_size_and_only_the_heads_learn(teacher):
    probe = probe_of(teacher).train()
    before = {key: tensor.clone() for key, tensor in probe.teacher.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in probe.parameters() if p.requires_grad], lr=0.1)
    output = probe(images(), tasks=("normals",))
    assert {task: tuple(made.shape) for task, made in output.tasks.items()} == {"normals": (2, 3, 32, 48)}
    output.tasks["normals"].square().mean().backward()
    optimiser.step()
    assert not probe.teacher.training
    assert not output.features.maps[0].requires_grad
    assert all(torch.equal(before[key], tensor) for key, tensor in probe.teacher.state_dict().items())
    assert {name.split(".")[0] for name, p in probe.named_parameters() if p.grad is not None} == {"heads"}


def test_the_heads_see_none_of_sams_padding():
    probe = probe_of(TeacherRecipe("sam", weights="random:1", sam_padding="keep", **SAM))
    assert probe(images()).features.grid == (3, 4)  # 32 x 48 becomes 43 x 64 of 64 x 64: 3 of 4 rows of patches


def test_a_probe_comes_back_from_its_heads_and_its_teachers_name(tmp_path):
    probe = probe_of(source()).eval()
    save_probe(probe, tmp_path)
    again = load_probe(tmp_path).eval()
    assert again.config == probe.config
    for task, made in probe(images()).tasks.items():
        assert torch.equal(made, again(images()).tasks[task])
    larger = load_probe(tmp_path, image_size=(64, 64))
    assert larger(images(64, 64)).tasks["semseg"].shape == (2, 5, 64, 64)
    assert (tmp_path / "probe.safetensors").stat().st_size < 4 * sum(p.numel() for p in probe.heads.parameters()) + 8000


def test_a_teacher_whose_weights_changed_is_refused(tmp_path):
    built = build_teacher(source(), image_size=(32, 32))
    known = source().identified(built.recipe)
    assert build_teacher(known, image_size=(64, 32)).weights_sha256 == built.weights_sha256
    other = TeacherRecipe.from_json({**known.to_json(), "weights": "random:4"})
    with pytest.raises(SakError, match=r"teacher clip .*random:4.*its weights is .*wanted .*--spec"):
        build_teacher(other, image_size=(32, 32))
    with pytest.raises(SakError, match="no such weights file"):
        build_teacher(known, weights=str(tmp_path / "gone.pth"), image_size=(32, 32))
    with pytest.raises(SakError, match="no record of a teacher: colour"):
        TeacherRecipe.from_json({**known.to_json(), "colour": "red"})


def test_heads_of_another_probe_are_refused(tmp_path):
    save_probe(probe_of(source()), tmp_path)
    with pytest.raises(SakError, match="holds the heads of another probe"):
        fill_heads(probe_of(source(), tasks={"semseg": 7}), tmp_path)
    with pytest.raises(UsageError, match=r"no task 'sal'; known: normals, semseg"):
        probe_of(source())(images(), tasks=("sal",))


def test_a_teacher_of_its_own_normalisation_sees_the_same_pixels():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for normalization in ("imagenet", "native"):
        teacher = build_teacher(source(), weights="random:3", image_size=(32, 32), normalization=normalization)
        for seen, expected in zip(teacher.from_imagenet((pixels - mean) / std), teacher(pixels), strict=True):
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
