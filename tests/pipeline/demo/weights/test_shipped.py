import fnmatch
import re
import tomllib
from dataclasses import replace

import pytest
import torch

from pipeline.demo.weights.shipped import DEMO_MODELS, DIRECTORY, ShippedFile, demo_model, shipped_file
from sak.errors import SakError, UsageError
from sak.student.build import build_student
from sak.student.config import StudentConfig
from sak.student.sizes import StemSize
from sak.teachers import TEACHERS, build_teacher, weights_available

MOST_BYTES = 12_000_000


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_every_shipped_file_is_the_one_whose_digest_is_pinned_and_its_card_says_so(name):
    file = shipped_file(name)
    assert file.fetch(f"demo/{name}") == file.path
    card = (DIRECTORY / f"{name}.md").read_text()
    assert file.sha256 in card
    assert "cc0-1.0" in card
    assert 1e6 < build_teacher(f"demo/{name}", image_size=128).parameter_count < 3e6


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in DIRECTORY.glob("*.safetensors")) <= MOST_BYTES


def test_the_package_takes_weights_and_cards_along(request):
    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline.demo.weights"]
    for path in [*DIRECTORY.glob("*.safetensors"), *DIRECTORY.glob("*.md")]:
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    good = shipped_file("clip")
    bad = replace(good, path=tmp_path / "clip.safetensors")
    with pytest.raises(SakError, match=r"clip\.safetensors is missing; install the package again"):
        bad.fetch("demo/clip")
    data = bytearray(good.path.read_bytes())
    data[-1] ^= 1
    bad.path.write_bytes(data)
    with pytest.raises(SakError, match=r"has SHA-256 [0-9a-f]{12}\.\.\., wanted [0-9a-f]{12}\.\.\."):
        bad.fetch("demo/clip")
    assert isinstance(good, ShippedFile)


def test_names_lead_to_the_registry_and_unknown_ones_to_the_nearest():
    row = TEACHERS["demo-dino"]
    assert (row.model, row.library, row.licence) == ("demo/dino", "demo", "cc0-1.0")
    assert weights_available(row)
    with pytest.raises(UsageError, match=r"no demo model is called 'dina'; did you mean 'dino'\?"):
        demo_model("dina")
    with pytest.raises(UsageError, match=r"no demo model is called 'dina'"):
        build_teacher("demo/dina")


def test_random_weights_stay_to_be_had_by_name():
    trained, random = (
        build_teacher("demo/clip", weights=weights, image_size=64) for weights in ("pretrained", "random:0")
    )
    assert (trained.is_random, random.is_random) == (False, True)
    assert trained.weights_sha256 != random.weights_sha256


def test_a_student_starts_from_the_shipped_stem_at_any_size():
    size = StemSize(96, 12, 3)
    student = build_student(StudentConfig(stem=size, image_size=(96, 96), weights="demo/stem", teachers={}))
    teacher = build_teacher("demo/stem", image_size=96)
    images = torch.rand(1, 3, 96, 96)
    tokens = student.stem((images - teacher.mean) / teacher.std)[12][:, 1:]
    wanted = teacher(images)[12].flatten(2).transpose(1, 2)
    assert torch.allclose(tokens, wanted, atol=1e-3)
    with pytest.raises(SakError, match="demo/dino: keys do not fit the stem"):
        build_student(StudentConfig(stem=size, image_size=(96, 96), weights="demo/dino", teachers={}))


def test_cards_tell_data_seed_cost_and_measures():
    for name in DEMO_MODELS:
        card = (DIRECTORY / f"{name}.md").read_text()
        for row in ("architecture", "objective", "data", "training", "cost", "measured on held-out scenes", "licence"):
            assert re.search(rf"\| {row} \| .+ \|", card), (name, row)
