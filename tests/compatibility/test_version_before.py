"""A cache, runs, a study and an export that version 0.1 wrote still open and go on; see v0.1/README.md.

Nothing is used but the command line and names that docs/api.md lists, so that these tests outlive moves of modules.
Equal bits are asked for on the kind of processor that wrote them, numbers that are close on others.
"""

import hashlib
import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import cli
from tests.compatibility.make import documented, read_maps

HERE = Path(__file__).resolve().parent
BEFORE = HERE / "v0.1"
WHERE_IT_WAS = "/tmp/compatibility"
WHEN = 1_700_000_000
CACHES = ("zarr", "webdataset", "held-out")
EXTRACT = "extract --data data/imagenet --device cpu --workers 1 --batch-size 8 --ignore-space"
DISTILL = (
    "distill --cache caches/zarr --val-cache caches/held-out --views 1 --config recipes/distill.yaml --device cpu "
    "--out runs/distill-stopped --resume"
)
MOVED = "--data data/imagenet --val-data data/imagenet --force"
FINETUNE = (
    "finetune --init runs/distill --dataset demo-pascal --data data --config recipes/finetune.yaml --device cpu "
    "--out runs/finetune-stopped --resume"
)
EVALUATE = "evaluate runs/finetune --json --device cpu --workers 0 --batch-size 2 --pictures 0"
GOES_ON = {"zarr": ("--views 2", 1), "webdataset": ("", 0)}
"""Cache -> how its extraction goes on, and the view whose last block was missing."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what the version before left, moved by its user; the working directory of the test."""
    place = tmp_path / "moved"
    shutil.copytree(BEFORE, place, symlinks=True)
    for path in (place / "data").rglob("*"):
        os.utime(path, (WHEN, WHEN))
    monkeypatch.chdir(place)
    monkeypatch.setenv("SAK_LABEL_CACHE", str(tmp_path / "labels"))
    return place


@pytest.fixture
def sak(capfd):
    """`sak("cache ls caches/zarr")` runs a command: its exit code, and what it wrote to both streams."""

    def run(line):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        said = capfd.readouterr()
        return SimpleNamespace(code=stop.value.code, out=said.out, err=said.err)

    return run


def said_before(name):
    """What a command said with --json, as if the folder had been here then."""
    return json.loads((BEFORE / "said" / name).read_text().replace(WHERE_IT_WAS, str(Path.cwd())))


def is_same_processor():
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    before = json.loads((BEFORE / "said" / "processor.json").read_text())
    return {"processor": (names or ["unknown"])[0], "torch": version("torch")} == before


def assert_same_tensors(mine, theirs):
    """Of two safetensors files."""
    mine, theirs = load_file(mine), load_file(theirs)
    assert mine.keys() == theirs.keys()
    tolerance = {"rtol": 0, "atol": 0} if is_same_processor() else {"rtol": 1e-3, "atol": 1e-5}
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, **tolerance)


def losses(run):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line and not line.get("evaluation")]


def assert_same_losses(mine, theirs):
    assert len(losses(mine)) == len(losses(theirs)) == 40
    assert losses(mine) == (losses(theirs) if is_same_processor() else pytest.approx(losses(theirs), rel=1e-4))


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_sound_and_listed_as_before(folder, sak, name):
    verified = sak(f"cache verify caches/{name} --deep --json")
    assert verified.code == 0, verified.out
    for word in ("ls", "stats"):
        shown = sak(f"cache {word} caches/{name} --json")
        assert shown.code == 0
        assert json.loads(shown.out) == said_before(f"{word}-{name}.json")


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_opens_and_holds_the_maps_it_held(folder, name):
    cache = documented("FeatureCache").open(f"caches/{name}", allow_partial=True)
    assert len(cache) == {"zarr": 20, "webdataset": 16, "held-out": 20}[name]
    now, before = read_maps(cache, range(3)), load_file(BEFORE / "said" / f"maps-{name}.safetensors")
    assert now.keys() == before.keys()
    for level, maps in before.items():
        torch.testing.assert_close(now[level], maps, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GOES_ON))
def test_an_extraction_goes_on_to_what_a_fresh_one_gives(folder, sak, name):
    more, view = GOES_ON[name]
    began = digests(f"caches/{name}")
    gone_on = sak(f"{EXTRACT} --spec specs/{name}.yaml --cache caches/{name} {more}")
    assert gone_on.code == 0, gone_on.err
    assert "2 of 3 blocks" in gone_on.err or "5 of 6 blocks" in gone_on.err
    kept = digests(f"caches/{name}")
    assert {path: kept.get(path) for path in began} == began, "what was there is not written again"
    assert any(f"v{view:03d}-b000002" in path for path in kept.keys() - began.keys())
    assert sak(f"cache verify caches/{name} --deep").code == 0
    assert all(column["complete"] for column in json.loads(sak(f"cache ls caches/{name} --json").out))
    fresh = sak(f"{EXTRACT} --spec specs/{name}.yaml --cache fresh {more}")
    assert fresh.code == 0, fresh.err
    if is_same_processor():
        assert kept == digests("fresh")
    else:
        assert_close_features(f"caches/{name}", "fresh", view + 1)


def digests(cache):
    """Path in the cache -> SHA-256 of every file of features and views."""
    files = [path for part in ("data", "views") for path in Path(cache).glob(f"columns/*/*/{part}/**/*")]
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()
    }


def assert_close_features(mine, theirs, views):
    """Within the last step of an encoding, which two processors may round differently."""
    mine, theirs = (documented("FeatureCache").open(place) for place in (mine, theirs))
    for view in range(views):
        here, there = (read_maps(cache, range(len(cache)), view) for cache in (mine, theirs))
        assert here.keys() == there.keys()
        for level, maps in there.items():
            assert float((here[level] - maps).norm() / maps.norm()) < 1e-2


def test_a_distillation_whose_folder_moved_differs_in_its_places_alone(folder, sak):
    """Every other setting of its `config.yaml` and all that it read is what today's code writes."""
    refused = sak(f"{DISTILL} {MOVED.removesuffix(' --force')}")
    assert refused.code == 2
    (listed,) = re.findall(r"the configuration changed: (.*); put it back", refused.err)
    assert [each.partition(":")[0] for each in listed.split("; ")] == ["data", "val_data", "reads.cache"]


def test_a_distillation_goes_on_to_the_undisturbed_one(folder, sak):
    ended = sak(f"{DISTILL} {MOVED}")
    assert ended.code == 0, ended.err
    mine, theirs = (Path(f"runs/{name}/checkpoints/last") for name in ("distill-stopped", "distill"))
    for name in ("student.safetensors", "ema/student.safetensors"):
        assert_same_tensors(mine / name, theirs / name)
    assert_same_losses("runs/distill-stopped", "runs/distill")
    sessions = json.loads(Path("runs/distill-stopped/run.json").read_text())["sessions"]
    assert [(each["step"], each["stopped"]) for each in sessions][1:] == [(40, False)]


def test_a_fine_tuning_goes_on_to_the_undisturbed_one(folder, sak):
    """Without --force: its settings are relative paths, and equal."""
    ended = sak(FINETUNE)
    assert ended.code == 0, ended.err
    mine, theirs = (Path(f"runs/{name}/checkpoints/last") for name in ("finetune-stopped", "finetune"))
    assert_same_tensors(mine / "student.safetensors", theirs / "student.safetensors")
    assert_same_losses("runs/finetune-stopped", "runs/finetune")


def test_an_evaluation_is_found_where_nothing_moved_and_made_again_elsewhere(folder, sak):
    before = said_before("evaluation.json")
    again = sak(EVALUATE)
    assert again.code == 0, again.err
    assert "evaluating runs/finetune" in again.err
    now = json.loads(again.out)
    assert now["of"] == before["of"]
    for task, scores in before["evaluation"]["tasks"].items():
        assert now["evaluation"]["tasks"][task]["value"] == pytest.approx(scores["value"], rel=1e-4)
    Path("runs/finetune/evaluation-val.json").write_text(json.dumps(before))
    found = sak(EVALUATE)
    assert found.code == 0, found.err
    assert "is of the very same network and images: taken from there" in found.err
    assert json.loads(found.out) == before


def test_predictions_and_exports_are_made_from_the_runs(folder, sak):
    exported = sak("export runs/distill --to safetensors --out exported")
    assert exported.code == 0, exported.err
    assert_same_tensors(Path("exported/student.safetensors"), Path("export/student.safetensors"))
    described = [json.loads(Path(place, "export.json").read_text()) for place in ("exported", "export")]
    assert described[0].keys() == described[1].keys()
    image = next(Path("data/PASCALContext/JPEGImages").iterdir())
    predicted = sak(f"predict runs/finetune {image} --out pictures --device cpu --workers 0")
    assert predicted.code == 0, predicted.err
    assert list(Path("pictures").rglob("*.png"))


def test_a_report_shows_the_runs_and_their_numbers(folder, sak):
    written = sak("report runs study --out report.html --no-maps")
    assert written.code == 0, written.err
    page = Path("report.html").read_text()
    for name in ("distill", "distill-stopped", "finetune", "finetune-stopped"):
        assert name in page
    value = said_before("evaluation.json")["evaluation"]["tasks"]["normals"]["value"]
    assert f"{value:.2f}" in page
    assert "RANDOM" in page


@pytest.mark.slow
def test_a_study_that_is_done_trains_nothing_again(folder, sak):
    """Its images moved, so extraction looks whether they are the same; the trainings are known by what they read."""
    before = hashes("study")
    table = results()
    ended = sak("ablate study.yaml --out study --jobs 1")
    assert ended.code == 0, ended.err
    assert not re.findall(r"distill-\w+: started", ended.out + ended.err)
    assert {path: hashes("study").get(path) for path in before} == before
    assert results() == table


def results():
    """The table's rows without the bytes of an image, which are told only of images that lie where they were read."""
    rows = [line.split("|") for line in Path("study/results.md").read_text().splitlines() if line.startswith("|")]
    return [[*cells[:2], *cells[3:]] for cells in rows]


def hashes(place):
    files = sorted(Path(place).rglob("*.safetensors"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_specs_and_recipes_of_then_are_understood(folder, sak):
    for path in Path("specs").iterdir():
        asked = yaml.safe_load(path.read_text())
        planned = sak(f"cache plan {path} --samples 20 --json")
        assert planned.code == 0, planned.err
        assert all(name in planned.out for name in asked["teachers"])
