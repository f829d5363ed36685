"""`sak-cli evaluate`: every metric of a run, in its directory, over a baseline, beside what is trivial."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.data.label_files import DataError
from pipeline.demo.data.write import write_demo_data
from pipeline.evaluate.stage import EvaluateConfig, evaluate
from pipeline.predict import PredictConfig, predict
from sak.checkpoints.reference import import_checkpoint
from sak.errors import UsageError
from sak.tasks import NYUD, PASCAL_CONTEXT
from tests.pipeline.task_runs import MULTI_TASK, write_run


@pytest.fixture(autouse=True)
def label_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAK_LABEL_CACHE", str(tmp_path_factory.getbasetemp() / "labels"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "demo"
    write_demo_data(folder, images=2, scenes=8, size=64, seed=5, processes=1)
    return folder


def asked(run, **options):
    return EvaluateConfig(run, **{"device": "cpu", "workers": 0, "pictures": 0, **options})


@pytest.fixture
def run(demo, tmp_path):
    return write_run(tmp_path / "run", "demo-nyud", demo)


def test_every_metric_is_told_and_written_as_json_markdown_and_figures(demo, run):
    report = evaluate(asked(run, trivial=True, pictures=2))
    written = json.loads((run / "evaluation-val.json").read_text())
    assert {*written["evaluation"]["tasks"]} == {*NYUD.names}
    assert written == json.loads(report.to_json())
    assert len(written["evaluation"]["tasks"]["semseg"]["numbers"]["per_class"]) == 40
    assert {"ois", "ap"} <= {*written["evaluation"]["tasks"]["edge"]["numbers"]}
    markdown = (run / "evaluation-val.md").read_text()
    for text in (report.to_text(), markdown):
        for word in ("odsF", "RMSE", "metres", "lower", "trivial", "margin", "wall", "occur nowhere"):
            assert word in text
    for name in ("gates.png", "predictions.png"):
        with Image.open(run / "figures" / name) as image:
            assert min(image.size) > 200
    whole = (run / "figures/predictions.png").read_bytes()
    part = evaluate(asked(run, tasks=("depth",), limit=1, pictures=1))
    assert {path.name for path in part.files} >= {"gates-val-depth-first1.png", "predictions-val-depth-first1.png"}
    assert (run / "figures/predictions.png").read_bytes() == whole


def test_gates_sum_to_one_and_are_over_all_images(run):
    gates = evaluate(asked(run)).document["gates"]
    assert gates["images"] == 2
    assert gates["experts"] == ["TAS", "dinov2", "clip"]
    assert {*gates["weights"]} == {"1", "2", "3", "4"}
    for tasks in gates["weights"].values():
        assert {*tasks} == {*NYUD.names}
        for row in tasks.values():
            assert sum(row) == pytest.approx(1, abs=1e-6)


def test_delta_m_is_over_the_baseline_and_zero_over_itself(demo, run, tmp_path):
    baseline = write_run(tmp_path / "multi", "demo-nyud", demo, parts=MULTI_TASK, seed=3)
    report = evaluate(asked(run, baseline_run=baseline, boundary=False))
    told = report.document["baseline"]
    values = {name: task["value"] for name, task in report.document["evaluation"]["tasks"].items()}
    signs = {"semseg": 1, "depth": -1, "normals": -1}
    gains = {
        name: 100 * sign * (values[name] - told["metrics"][name]) / told["metrics"][name]
        for name, sign in signs.items()
    }
    assert told["gain_per_task"] == pytest.approx(gains)
    assert told["delta_m"] == pytest.approx(sum(gains.values()) / 3)
    assert "delta_m" in report.to_text()
    assert evaluate(asked(run, baseline_run=run, boundary=False)).tables.gain.value == 0


def evaluated_again(config):
    said = []
    evaluate(config, say=said.append)
    return not any("taken from there" in line for line in said)


def test_what_is_stored_is_used_again_only_where_it_fits(demo, run, tmp_path):
    said = []
    evaluate(asked(run), say=said.append)
    assert not any("taken from there" in line for line in said)
    stored = run / "evaluation-val.json"
    document = json.loads(stored.read_text())
    document["evaluation"]["tasks"]["depth"]["value"] = 123.0
    stored.write_text(json.dumps(document))
    assert evaluate(asked(run), say=said.append).tables.evaluation.metrics["depth"] == 123
    assert "taken from there" in said[-1]

    def anew(**options):
        return evaluate(asked(run, **options)).tables.evaluation.metrics["depth"] != 123

    assert anew(split="train")
    assert anew(limit=1)
    assert anew(tasks=("depth",))
    assert stored.read_text() == (run / "evaluation-val.json").read_text()
    moved = shutil.copytree(demo, tmp_path / "moved")
    assert anew(data=moved)
    evaluate(asked(run, data=moved, limit=1))
    assert not evaluated_again(asked(run, data=moved, limit=1))
    (label,) = moved.glob("NYUDv2/segmentation/" + (moved / "NYUDv2/gt_sets/val.txt").read_text().split()[0] + ".png")
    Image.open(label).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(label)
    assert evaluated_again(asked(run, data=moved, limit=1))
    evaluate(asked(run, data=moved))
    write_run(run, "demo-nyud", demo, seed=9, step=2)
    assert anew()
    assert anew(again=True)


def test_saved_predictions_are_what_the_fields_tools_read(demo, run, tmp_path):
    evaluate(asked(run, save=tmp_path / "saved"))
    with pytest.raises(UsageError, match="is not an empty folder"):
        asked(run, save=tmp_path / "saved")
    evaluate(asked(run, save=tmp_path / "saved", again=True))
    read = {task: sorted((tmp_path / "saved" / task).iterdir()) for task in NYUD.names}
    assert all(len(files) == 2 for files in read.values())
    with Image.open(read["semseg"][0]) as image:
        assert image.mode == "P"
        assert np.asarray(image).max() < 40
        own = image.size[::-1]
    depth = np.load(read["depth"][0])
    assert (depth.shape, depth.dtype) == (own, np.float32)
    with Image.open(read["normals"][0]) as image:
        vectors = 2 * np.asarray(image).astype(np.float32) / 255 - 1
    assert np.linalg.norm(vectors, axis=2) == pytest.approx(1, abs=0.02)
    with Image.open(read["edge"][0]) as image:
        assert image.mode == "L"


def test_a_run_of_one_network_a_task_is_evaluated_as_one(demo, tmp_path):
    whole = tmp_path / "single"
    for seed, task in enumerate(NYUD.names):
        write_run(whole / task, "demo-nyud", demo, tasks=[task], parts=MULTI_TASK, seed=seed)
    (whole / "config.yaml").write_text((whole / "depth/config.yaml").read_text())
    parts = {task: task for task in NYUD.names}
    (whole / "run.json").write_text(json.dumps({"stage": "finetune", "dataset": "demo-nyud", "parts": parts}))
    together = evaluate(asked(whole)).tables.evaluation.metrics
    apart = {task: evaluate(asked(whole / task)).tables.evaluation.metrics[task] for task in NYUD.names}
    assert together == apart


def test_what_does_not_fit_is_one_line(demo, run, tmp_path):
    for options, error, message in (
        (
            {"dataset": "pascal-context"},
            UsageError,
            "has 40 channels, pascal-context has 21; it was trained on demo-nyud",
        ),
        ({"tasks": ("depht",)}, UsageError, "does not predict 'depht'; did you mean 'depth'"),
        ({"split": "test"}, UsageError, "its splits are train, val"),
        ({"data": tmp_path / "nowhere"}, DataError, "is not a folder"),
        ({"baseline_run": tmp_path / "none"}, UsageError, "no such folder"),
        ({"tasks": ("edge",), "boundary": False}, UsageError, "no task is left"),
    ):
        with pytest.raises(error, match=message):
            evaluate(asked(run, **options))
    for option in ("batch_size", "limit"):
        with pytest.raises(UsageError, match="at least 1, got 0"):
            asked(run, **{option: 0})
    elsewhere = write_run(tmp_path / "elsewhere", "demo-nyud", "nowhere/at/all")
    with pytest.raises(UsageError, match=r"was trained on nowhere/at/all, which is not there; name .* with --data"):
        evaluate(asked(elsewhere))
    (run / "config.yaml").unlink()
    with pytest.raises(UsageError, match="name the data set's folder with --data"):
        evaluate(asked(run))
    broken = shutil.copytree(demo, tmp_path / "broken")
    next((broken / "NYUDv2/depth").iterdir()).unlink()
    shutil.rmtree(broken / "NYUDv2/depth")
    with pytest.raises(DataError, match="files are missing"):
        evaluate(asked(run, data=broken))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        evaluate(asked(run, data=demo))


def test_a_baseline_that_lacks_a_task_is_named_before_anything_is_evaluated(demo, run, tmp_path):
    baseline = write_run(tmp_path / "less", "demo-nyud", demo, tasks=["depth", "edge"], parts=MULTI_TASK)
    with pytest.raises(UsageError, match="does not predict semseg, normals, so delta_m has no baseline"):
        evaluate(asked(run, baseline_run=baseline))
    assert not (run / "evaluation-val.json").exists()
    assert evaluate(asked(run, baseline_run=baseline, tasks=("depth",))).tables.gain is not None


@pytest.mark.slow
def test_the_real_part_images_are_evaluated(test_data, tmp_path):
    tree = tmp_path / "data/PASCALContext"
    shutil.copytree(test_data / "pascal-part/images", tree / "JPEGImages", copy_function=shutil.copyfile)
    shutil.copytree(test_data / "pascal-part/annotations", tree / "human_parts", copy_function=shutil.copyfile)
    (tree / "ImageSets/Context").mkdir(parents=True)
    names = sorted(path.stem for path in (tree / "JPEGImages").glob("*.jpg"))
    (tree / "ImageSets/Context/val.txt").write_text("\n".join(names))
    run = write_run(tmp_path / "run", "pascal-context", tmp_path / "data", size=(512, 512), tasks=["human_parts"])
    found = evaluate(asked(run)).tables.evaluation.tasks["human_parts"]
    assert (found.images, found.unlabelled) == (8, 10)
    assert 0 < found.value < 30


@pytest.mark.slow
def test_the_real_nyud_frame_is_evaluated_at_its_own_size(test_data, tmp_path):
    frame, tree = test_data / "nyuv2/rgbd_1407", tmp_path / "data/NYUDv2"
    for folder in ("images", "depth", "gt_sets"):
        (tree / folder).mkdir(parents=True)
    shutil.copyfile(frame / "images.png", tree / "images/1407.png")
    with Image.open(frame / "depth.png") as image:
        metres = np.array(image).astype(np.float32) / 1000
    np.save(tree / "depth/1407.npy", metres)
    (tree / "gt_sets/val.txt").write_text("1407\n")
    run = write_run(tmp_path / "run", "nyud", tmp_path / "data", size=(448, 576), tasks=["depth"])
    evaluate(asked(run, save=tmp_path / "saved"))
    predicted = np.load(tmp_path / "saved/depth/1407.npy")
    document = json.loads((run / "evaluation-val-depth.json").read_text())["evaluation"]["tasks"]["depth"]
    assert document["pixels"] == metres.size == 425 * 560
    error = np.sqrt(np.mean((predicted.astype(np.float64) - metres) ** 2))
    assert document["value"] == pytest.approx(error, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("name", "demo_name"), [("pascalcontext", "demo-pascal"), ("nyud", "demo-nyud")])
def test_the_authors_fine_tuned_layout_imports_evaluates_and_predicts(golden, demo, tmp_path, name, demo_name):
    layout = json.loads((golden / "layouts.json").read_text())[f"BB_s2_{name}"]
    generator = torch.Generator().manual_seed(0)
    state = {key: 0.02 * torch.randn(shape, generator=generator) for key, shape in layout.items()}
    state |= {key: value.abs() + 1 for key, value in state.items() if key.endswith("running_var")}
    state |= {key: torch.tensor(1) for key in layout if key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "theirs.safetensors")
    dataset = {"pascalcontext": "pascal-context"}.get(name, name)
    imported = tmp_path / "imported"
    teachers = ("dinov2", "clip", "sam")
    import_checkpoint(tmp_path / "theirs.safetensors", imported, dataset=dataset, teachers=teachers)
    report = evaluate(asked(imported, dataset=demo_name, data=demo, limit=1, batch_size=1))
    table = PASCAL_CONTEXT if dataset == "pascal-context" else NYUD
    assert {*report.tables.evaluation.metrics} == {*table.names}
    assert report.tables.evaluation.size == table.input_size
    Image.effect_noise((40, 30), 50).save(tmp_path / "photo.png")
    done = predict(PredictConfig(imported, (tmp_path / "photo.png",), tmp_path / "out", device="cpu", workers=0))
    assert done.predicted == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*table.names, "panels"}
