"""Exports give the run's outputs; the card's loader runs where there is nothing but what it names."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline.export.card import find_source
from pipeline.export.formats import reachable
from pipeline.export.stage import run_export
from sak.checkpoints.store import deployable, load_student, save_student
from sak.errors import SakError, UsageError
from sak.student.build import build_student, many_to_one
from sak.student.config import Lora, StudentConfig
from sak.student.extractor import Deployed, FeatureExtractor
from sak.student.sizes import StemSize
from sak.variants.swin import SwinSize

CONFIG = StudentConfig(
    image_size=(32, 48),
    stem=StemSize(width=16, depth=2, heads=2),
    weights="random:3",
    levels=(1, 2),
    teachers={"dinov2": 24, "sam": None},
    tasks={"semseg": 3, "depth": 1},
    lora=Lora(rank=2),
)


def shaken(config):
    """A student none of whose parts is as it was drawn: norms, scales, LoRA and running statistics too."""
    student = build_student(config)
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in (*student.parameters(), *student.buffers()):
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=draws))
    return student.eval()


@pytest.fixture
def run(tmp_path):
    """A run's directory as finetune leaves it."""
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    student = shaken(CONFIG)
    save_student(student, folder)
    (folder.parent / "best").symlink_to(folder.name)
    about = {
        "stage": "finetune",
        "dataset": "demo-nyud",
        "reads": {"columns": ["columns/sam-1a2b3c4d/0011"], "random": ["sam"], "live": {}},
        "teachers": {
            "dinov2": {"model": "timm/vit_base_patch14_dinov2.lvd142m", "weights": "pretrained"},
            "sam": {"model": "timm/samvit_base_patch16.sa1b", "weights": "random:1"},
        },
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    return SimpleNamespace(place=tmp_path / "run", student=student, out=tmp_path / "out")


def run_the_cards_loader(folder, also=""):
    """The code in the card, run in its folder by a Python that finds only installed packages."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    tail = "\nimport json, sys; print(json.dumps({k: list(v.shape) for k, v in outputs.items()}))\n"
    ended = subprocess.run(
        [sys.executable, "-c", code + tail + also],
        cwd=folder, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


SHAPES = {"semseg": [1, 3, 32, 48], "depth": [1, 1, 32, 48]}


@torch.no_grad()
def test_a_deployed_student_predicts_the_same_without_aligners_and_lora():
    student = shaken(CONFIG)
    plain = deployable(student)
    assert (plain.config.lora, plain.config.aligned, plain.config.freeze) == (None, False, "none")
    keys = plain.state_dict()
    assert not [key for key in keys if key.startswith("aligners.") or "lora" in key]
    images = torch.randn(2, 3, 32, 48)
    for task, map_ in student(images).tasks.items():
        torch.testing.assert_close(plain(images).tasks[task], map_, rtol=1e-5, atol=1e-5)
    assert student.config.lora is not None


@torch.no_grad()
@pytest.mark.parametrize("name", ["many-to-one", "swin", "mlore", "invpt"])
def test_every_kind_of_student_can_leave(name, tmp_path):
    config = replace(CONFIG, lora=None)
    if name == "many-to-one":
        config = many_to_one(config)
    elif name == "swin":
        size = SwinSize(embed=8, depths=(1, 1), heads=(1, 2), window=2)
        config = replace(config, stem=size, levels=None if size.depth == 4 else (1, 2), image_size=(32, 48))
    else:
        config = replace(config, decoder=name)
    student = shaken(config)
    save_student(deployable(student), tmp_path)
    again = load_student(tmp_path).eval()
    images = torch.randn(1, 3, 32, 48)
    for task, map_ in student(images).tasks.items():
        torch.testing.assert_close(again(images).tasks[task], map_, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_safetensors_come_with_the_code_that_reads_them_and_need_nothing_else(run):
    done = run_export(run.place, run.out, to="safetensors")
    assert (done.outputs, done.difference <= 1e-5) == (("semseg", "depth"), True)
    also = (
        "import sak; print(sak.__file__)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'pydantic', 'numba', 'accelerate', 'typer', 'zarr',"
        " 'pipeline', 'open_clip', 'scipy'}))\n"
    )
    shapes, where, others = run_the_cards_loader(run.out, also)
    assert json.loads(shapes) == SHAPES
    assert where.startswith((str(run.out), "."))
    assert others == "[]"


def test_the_card_tells_what_it_is_and_what_it_learnt_from(run):
    run_export(run.place, run.out, to="safetensors")
    card = (run.out / "README.md").read_text()
    for told in ("(batch, 3, 32, 48)", "0.485", "semseg (3 channels)", "decoder simple", "finetune, data set demo-nyud",
                 "timm/vit_base_patch14_dinov2.lvd142m", "apache-2.0", "RANDOM", "1a2b3c4d", "TAS"):  # fmt: skip
        assert told in card, told
    facts = json.loads((run.out / "export.json").read_text())
    assert facts["parameters"]["total"] == sum(p.numel() for p in deployable(run.student).parameters())
    assert [teacher["cache key"] for teacher in facts["teachers"]] == ["none", "1a2b3c4d"]


@pytest.mark.slow
def test_a_torch_export_gives_the_runs_outputs_at_any_batch_and_size(run):
    done = run_export(run.place, run.out, to="torch-export", dynamic_size=True)
    assert done.difference <= 1e-4
    program = torch.export.load(run.out / "student.pt2").module()
    images = torch.randn(3, 3, 64, 32)
    larger = deployable(run.student)
    larger.stem.accept_any_size()
    with torch.no_grad():
        found, expected = program(images), Deployed(larger, "predictions")(images)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    (shapes,) = run_the_cards_loader(run.out)
    assert json.loads(shapes) == SHAPES


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_gives_the_runs_outputs_in_onnxruntime(run, dynamic):
    pytest.importorskip("onnxruntime")
    done = run_export(run.place, run.out, to="onnx", dynamic_size=dynamic)
    assert done.difference <= 1e-4
    (shapes,) = run_the_cards_loader(run.out)
    assert json.loads(shapes) == SHAPES


@torch.no_grad()
def test_any_size_is_what_loading_at_that_size_gives(run):
    any_size = deployable(run.student)
    any_size.stem.accept_any_size()
    fixed = load_student(run.place / "checkpoints" / "best", image_size=(64, 80)).eval()
    images = torch.randn(1, 3, 64, 80)
    torch.testing.assert_close(any_size(images).tasks["depth"], fixed(images).tasks["depth"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_extractor_has_timms_attributes_and_each_kind_of_features():
    student = shaken(CONFIG)
    images = torch.randn(2, 3, 32, 48)
    output = student(images)
    for source, expected in (("TAS", output.tas), ("sam", output.paths["sam"]), ("depth", output.fused["depth"])):
        extractor = FeatureExtractor(student, source)
        assert torch.equal(extractor.forward_features(images), expected.maps[-1])
        assert all(torch.equal(a, b) for a, b in zip(extractor(images), expected, strict=True))
        assert torch.equal(extractor.forward_intermediates(images, [0])[0], expected.maps[0])
    assert extractor.num_features == 16
    assert [info["reduction"] for info in extractor.feature_info] == [16, 16]
    with pytest.raises(UsageError, match=r"no features 'dino'.*dinov2"):
        FeatureExtractor(student, "dino")


def test_features_and_task_features_are_named_by_source_and_level(run):
    assert Deployed(run.student, "task-features").names == (
        "semseg.level1", "semseg.level2", "depth.level1", "depth.level2")  # fmt: skip
    names = Deployed(run.student, "features").names
    assert names[:3] == ("TAS.level1", "TAS.level2", "dinov2.level1")
    with torch.no_grad():
        maps = Deployed(run.student, "features")(torch.randn(1, 3, 32, 48))
    assert all(tuple(map_.shape) == (1, 16, 2, 3) for map_ in maps)
    assert len(maps) == len(names)


def test_a_fine_tuned_runs_card_has_the_keys_of_the_distillation_it_came_from(run, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(run.place, later, symlinks=True)
    about = {"stage": "finetune", "init": str(run.place / "checkpoints" / "best"), "reads": {"live": {}}}
    (later / "run.json").write_text(json.dumps(about))
    assert find_source(later, "best", averaged=False, image_size=None).about["columns"] == ["columns/sam-1a2b3c4d/0011"]


def test_the_reader_is_whole_and_small():
    from pathlib import Path

    import sak

    names = reachable(Path(sak.__file__).resolve().parent.parent)
    assert {"sak.student.student", "sak.variants.invpt", "sak.variants.swin", "sak.features"} <= set(names)
    assert not [name for name in names if name.startswith(("sak.teachers", "sak.losses", "sak.metrics"))]


def test_what_cannot_be_exported_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(UsageError, match=r"no format 'onyx'.*onnx"):
        run_export(run.place, run.out, to="onyx")
    with pytest.raises(UsageError, match="no checkpoint 'lsat'; did you mean 'last'"):
        run_export(run.place, run.out, to="onnx", checkpoint="lsat")
    with pytest.raises(UsageError, match="no such folder"):
        run_export(tmp_path / "nowhere", run.out, to="onnx")
    with pytest.raises(UsageError, match="dynamic-size is for torch-export and onnx"):
        run_export(run.place, run.out, to="safetensors", dynamic_size=True)
    with pytest.raises(UsageError, match="no averaged weights"):
        run_export(run.place, run.out, to="safetensors", averaged=True)
    run.out.mkdir()
    (run.out / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        run_export(run.place, run.out, to="safetensors")
    with pytest.raises(UsageError, match="is not an export"):
        run_export(run.place, run.out, to="safetensors", overwrite=True)
    assert (run.out / "mine.txt").is_file()


def test_outputs_that_are_not_the_runs_are_never_kept(run, monkeypatch):
    from pipeline.export import formats

    def broken(module, folder, dynamic_size):
        found = formats.to_safetensors(module, folder, dynamic_size)
        return formats.Exported(found.file, found.needs, lambda images: [map_ + 0.01 for map_ in found.run(images)])

    monkeypatch.setattr("pipeline.export.stage.FORMATS", {"safetensors": broken})
    with pytest.raises(SakError, match="differs from the run by"):
        run_export(run.place, run.out, to="safetensors")
    assert not run.out.exists()
    assert not list(run.out.parent.glob(".*.part"))


def test_onnx_without_its_packages_is_one_line_that_says_how_to_get_them(run, monkeypatch):
    monkeypatch.setattr("pipeline.export.formats.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(SakError, match=r"onnxruntime.*pip install 'sak\[export\]'") as told:
        run_export(run.place, run.out, to="onnx")
    assert "\n" not in str(told.value)
    assert not run.out.exists()
